"""With `gather=True`, two gloo processes give the values and gradients of one process on the whole batch."""

import copy
import gc
import os
import socket
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from ibreg import CauchySchwarzBottleneck, HSICBottleneck, NonlinearBottleneck, Regularized
from ibreg.functional import conditional_cs_divergence, cs_qmi, hsic
from ibreg.functional.kernel.divergence import MODES
from ibreg.losses import ConditionalCauchySchwarz

LENGTHS = (5, 8)
TILED = {
    "biased": lambda x, y, **options: hsic(x, y, estimator="biased", **options),
    "unbiased": lambda x, y, **options: hsic(x, y, bandwidth_y=("rms", 0.5), **options),
    "cka": lambda x, y, **options: hsic(x, y, estimator="cka", kernel_x="linear", **options),
    "information": lambda x, y, **options: cs_qmi(x, y, normalized=True, **options),
    "labels": lambda x, y, **options: hsic(x, (y[:, 0] > 0).long(), kernel_y="delta", **options),
}


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(LENGTHS), 4, generator=generator, dtype=dtype)
    return x, x[:, :3] ** 2 + 0.3 * torch.randn(sum(LENGTHS), 3, generator=generator, dtype=dtype)


def value_and_gradients(function, x, y, **options):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = function(x, y, **options)
    value.backward()
    return value.detach(), *(torch.zeros_like(v) if v.grad is None else v.grad for v in (x, y))


def check_values_and_gradients(rank):
    start = sum(LENGTHS[:rank])
    own = slice(start, start + LENGTHS[rank])
    x, y = data()
    for function in TILED.values():
        expected = value_and_gradients(function, x, y)
        for block_size in (None, 3):
            value, *gradients = value_and_gradients(function, x[own], y[own], block_size=block_size, gather=True)
            torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-8)
            for gradient, whole in zip(gradients, expected[1:], strict=True):
                torch.testing.assert_close(gradient / 2, whole[own], rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


def check_even_batches_under_ddp(rank):
    x, y = (v[:12] for v in data())
    torch.manual_seed(0)
    single = nn.Linear(3, 2)
    (cs_qmi(x, single(y)) - hsic(x, single(y))).backward()
    torch.manual_seed(0)
    parallel = DistributedDataParallel(nn.Linear(3, 2))
    half = x.chunk(2)[rank], y.chunk(2)[rank]
    code = parallel(half[1])
    (cs_qmi(half[0], code, gather=True) - hsic(half[0], code, gather=True)).backward()
    for ours, theirs in zip(parallel.module.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def check_a_rank_without_rows(rank):
    x, y = data()
    rows = slice(0, 13 if rank == 0 else 0)
    value, _, gradient = value_and_gradients(TILED["unbiased"], x[rows], y[rows], gather=True)
    torch.testing.assert_close(value, TILED["unbiased"](x, y))
    assert gradient.shape == y[rows].shape


def check_the_conditional_divergence(rank):
    start = sum(LENGTHS[:rank])
    own = slice(start, start + LENGTHS[rank])
    x, y = data()
    generator = torch.Generator().manual_seed(1)
    guess = y + torch.randn(y.shape, generator=generator)
    for mode in MODES:
        for block_size in (None, 3):

            def divergence(y, guess, inputs=x, mode=mode, **options):
                return conditional_cs_divergence(inputs, y, guess, mode=mode, bandwidth_x=("rms", 0.5), **options)

            expected, _, whole = value_and_gradients(divergence, y, guess)
            value, _, gradient = value_and_gradients(
                divergence, y[own], guess[own], inputs=x[own], block_size=block_size, gather=True
            )
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(gradient / 2, whole[own], rtol=1e-5, atol=1e-6 * float(whole.abs().max()))
    half = 4 * rank, 4 * rank + 4
    loss = ConditionalCauchySchwarz(gather=True, share=0.0)(guess[slice(*half)], y[slice(*half)], x[slice(*half)])
    torch.testing.assert_close(loss, ConditionalCauchySchwarz(share=0.0)(guess[:8], y[:8], x[:8]))


def check_refusals_reach_every_rank(rank):
    x, y = data()
    with pytest.raises(ValueError, match=r"same number of features, got \[3, 4\]"):
        hsic(x[:, : 3 + rank], y, gather=True)
    other = y[: 12 + rank]  # of x, both ranks have 13 rows
    with pytest.raises(ValueError, match="same number of samples"):
        hsic(x, other, gather=True)
    shifted = (x[:5], y[:6]) if rank == 0 else (x[:6], y[:5])  # the totals agree
    with pytest.raises(ValueError, match="same number of samples"):
        hsic(*shifted, gather=True)
    with pytest.raises(ValueError, match="at least 4 samples, got 2"):
        hsic(x[:1], y[:1], gather=True)


def check_layers(rank):
    x, _ = (v[:12] for v in data())
    target = torch.arange(12) % 3
    torch.manual_seed(0)
    for layer in (
        CauchySchwarzBottleneck(gather=True),
        CauchySchwarzBottleneck(gather=True, normalized=True, normalize_code=False),
        HSICBottleneck(gather=True),
        HSICBottleneck(gather=True, estimator="cka", block_size=2),
        NonlinearBottleneck(4, gather=True),
    ):
        net = nn.Sequential(nn.Linear(4, 4), layer)
        if layer.stochastic:
            nn.init.constant_(layer.log_variance, 1.0)
        alone = copy.deepcopy(net)
        alone[1].gather = False
        single = Regularized(alone)(x, target=target).penalty
        single.backward()
        model = DistributedDataParallel(Regularized(net))
        half = x.chunk(2)[rank], target.chunk(2)[rank]
        penalty = model(half[0], target=half[1]).penalty
        penalty.backward()
        torch.testing.assert_close(penalty, single, rtol=1e-5, atol=1e-7)
        for (name, shared), own in zip(net.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(shared.grad, own.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


CHECKS = [
    check_layers,
    check_values_and_gradients,
    check_even_batches_under_ddp,
    check_a_rank_without_rows,
    check_the_conditional_divergence,
    check_refusals_reach_every_rank,
]


def worker(rank, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for check in CHECKS:
        try:
            check(rank)
        except Exception as error:
            error.add_note(f"in {check.__name__} on rank {rank}")
            raise
    gc.collect()  # a model that is freed after the group could not release its buckets
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(port,), nprocs=2)
