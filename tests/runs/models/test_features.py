"""The cache of features: what is read is what was computed, and anything that changes makes another file."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ibreg.runs.data.image_files import ImageFiles
from ibreg.runs.models.features import cached, digest, encode, standardized


class Counting(nn.Linear):
    """A linear encoder that counts its calls."""

    def __init__(self):
        super().__init__(6, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x.flatten(1))


@pytest.fixture
def encoder():
    return Counting().eval().requires_grad_(False)


@pytest.fixture
def inputs():
    return torch.randn(10, 2, 3)


def test_features_are_those_of_the_encoder_and_are_computed_once(encoder, inputs, tmp_path):
    found = encode(encoder, inputs, cache=tmp_path, batch_size=4)
    assert encoder.calls == 3
    torch.testing.assert_close(found, inputs.flatten(1) @ encoder.weight.T + encoder.bias)
    assert torch.equal(encode(encoder, inputs.clone(), cache=tmp_path), found)
    assert encoder.calls == 3
    assert not list(tmp_path.glob("*.partial"))


def test_other_weights_inputs_or_architecture_are_computed_again(encoder, inputs, tmp_path):
    encode(encoder, inputs, cache=tmp_path)
    inputs[3, 1, 1] += 1e-6
    encode(encoder, inputs, cache=tmp_path)
    assert encoder.calls == 2
    encoder.weight[0, 0] += 1e-3
    encode(encoder, inputs, cache=tmp_path)
    assert encoder.calls == 3
    behind = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU()).eval().requires_grad_(False)
    other = nn.Sequential(nn.Flatten(), behind[1], nn.Tanh()).eval()
    assert not torch.equal(encode(behind, inputs, cache=tmp_path), encode(other, inputs, cache=tmp_path))
    assert len(list(tmp_path.glob("features-*.pt"))) == 5


def test_a_damaged_file_is_computed_again(encoder, inputs, tmp_path):
    found = encode(encoder, inputs, cache=tmp_path)
    (path,) = tmp_path.glob("features-*.pt")
    path.write_bytes(path.read_bytes()[:-40])
    assert torch.equal(encode(encoder, inputs, cache=tmp_path), found)
    assert encoder.calls == 2
    encode(encoder, inputs, cache=tmp_path)
    assert encoder.calls == 2


def test_images_in_files_are_known_by_their_change(encoder, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((4, 4, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]

    def files(size):
        return ImageFiles(paths, size)

    first = digest(encoder, (), files(4))
    assert digest(encoder, (), files(4)) == first
    assert digest(encoder, (), files(2)) != first
    found = encode(nn.Flatten(), files(4), cache=tmp_path / "cache", batch_size=2)
    assert found.shape == (3, 48)
    assert found[:, 0] == pytest.approx([0, 40 / 255, 80 / 255], abs=1e-6)
    Image.fromarray(np.full((4, 4, 3), 250, dtype=np.uint8)).save(tmp_path / "1.png")
    assert encode(nn.Flatten(), files(4), cache=tmp_path / "cache")[1, 0] == pytest.approx(250 / 255, abs=1e-6)


def test_features_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        encode(nn.Flatten(), torch.tensor([[1.0, float("nan")]]), cache=tmp_path)


def _compute_slowly(folder, started):
    started.wait(20)

    def compute():
        with (folder / "computed").open("a") as file:
            file.write("x")
        return {"a": torch.randn(1000, 100)}

    cached(folder, "slow", "0" * 20, compute)


def test_of_processes_that_want_the_same_at_once_one_computes(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    processes = [context.Process(target=_compute_slowly, args=(Path(tmp_path), started)) for _ in range(3)]
    for process in processes:
        process.start()
    started.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "computed").read_text() == "x"


def test_features_are_scaled_by_others_with_a_floor():
    by = torch.randn(500, 4) * torch.tensor([1.0, 2.0, 3.0, 1e-6]) + 5
    features = torch.randn(20, 4)
    reference = by.double().numpy()
    deviation = reference.std(axis=0, ddof=1)
    expected = (features.double().numpy() - reference.mean(axis=0)) / np.maximum(deviation, deviation.mean() / 10)
    np.testing.assert_allclose(standardized(features, by).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert standardized(torch.ones(2, 3), torch.ones(2, 3)).isfinite().all()
