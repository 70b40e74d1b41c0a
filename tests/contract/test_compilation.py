"""Compilation, export and ONNX of every registered bottleneck."""

import copy
import shutil
import warnings

import pytest
import torch

import ibreg
from tests.contract.table import (
    BATCH,
    FEATURES,
    build,
    build_first,
    every_case,
    every_case_first_quick,
    every_name,
    injected,
    needed,
    network,
    step,
)


@every_case_first_quick
def test_compiled_without_graph_break_equals_eager(name, options):
    layer = build(name, options)
    assert_compiled_equals_eager(layer, draws=2 if layer.stochastic else 1)


@pytest.mark.slow
@every_name
def test_one_draw_compiled_without_graph_break_equals_eager(name):
    layer = build_first(name)
    if not layer.stochastic:
        pytest.skip("compiled with one draw by the test above")
    assert_compiled_equals_eager(layer, draws=1)


def assert_compiled_equals_eager(layer, draws):
    model, x = ibreg.Regularized(network(layer), draws=draws), torch.randn(BATCH, FEATURES)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    eager, traced = step(model, x, needed(layer)), step(compiled, x, needed(layer))
    for a, b in zip((*eager[:2], *eager[2]), (*traced[:2], *traced[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert type(compiled(x, **needed(layer))) is type(model(x, **needed(layer)))

    model.eval()
    twin.eval()
    expected, measured = model(x, **needed(layer)), compiled(x, **needed(layer))
    torch.testing.assert_close(measured.output, expected.output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.logs, expected.logs, rtol=1e-5, atol=1e-6)
    assert measured.penalty == expected.penalty == 0

    with pytest.raises(RuntimeError, match="bottleneck 1 got NaN or infinite"):
        compiled(torch.full_like(x, float("nan")), **needed(layer))


@pytest.mark.slow
@every_name
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_smoke(name):
    layer = build_first(name)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    eager = [step(model, x, needed(layer), seed)[1] for seed in range(2)]
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own, about the machine
        _, penalty, gradients = step(torch.compile(model, fullgraph=True), x, needed(layer))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(penalty)
    if torch.equal(*eager):  # inductor draws other noise
        torch.testing.assert_close(penalty, eager[0], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@every_name
def test_no_warning_while_compiling(name):
    torch._dynamo.reset()
    torch.compile(network(build_first(name)), fullgraph=True, backend="aot_eager")(torch.randn(BATCH, FEATURES))


@every_case_first_quick
@pytest.mark.parametrize("around", [pytest.param(network, marks=pytest.mark.slow), injected])
def test_export_in_evaluation(name, options, around):
    net, x = around(build(name, options)).eval(), torch.randn(BATCH, FEATURES)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    larger = torch.randn(BATCH + 3, FEATURES)
    torch.testing.assert_close(program.module()(larger), net(larger))


@pytest.mark.slow
@every_case
def test_onnx_in_evaluation(name, options, tmp_path):
    pytest.importorskip("onnxscript", reason="ONNX needs onnxscript: pip install 'ibreg[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime: pip install 'ibreg[onnx]'")
    net, x = injected(build(name, options)).eval(), torch.randn(BATCH, FEATURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about torch's internals
        batch = torch.export.Dim("batch", min=2)
        program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    program.save(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    larger = torch.randn(BATCH + 3, FEATURES)
    (measured,) = session.run(None, {session.get_inputs()[0].name: larger.numpy()})
    torch.testing.assert_close(torch.from_numpy(measured), net(larger).detach(), rtol=1e-5, atol=1e-6)
