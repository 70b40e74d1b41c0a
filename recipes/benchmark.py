"""What a bottleneck costs: medians of alternating runs, as ratios to a model with plain layers in its place.

    python recipes/benchmark.py                # every case
    python recipes/benchmark.py repeats=50 cases=[mlp]

Absolute times depend on the machine and on what else it does; alternating runs see the same disturbances, so read their
ratio. Memory is what the graph keeps for the backward pass, counted exactly.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import ibreg
from ibreg.training import models

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

Step = Callable[[], object]


@hydra.main(config_path=str(CONFIGS), config_name="benchmark", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs the cases and prints a table of ratios."""
    unknown = [case for case in cfg.cases if case not in CASES]
    if unknown or cfg.repeats < 1:
        raise ValueError(f"cases are some of {', '.join(CASES)} and repeats at least 1, got {cfg.cases}, {cfg.repeats}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {cfg.repeats}")
    for heading in ("case", "plain (ms)", "bottleneck (ms)", "ratio", "memory kept", "wanted at most"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in cfg.cases:
        for label, plain, bottleneck, bound in CASES[case]():
            first, second = alternate(plain, bottleneck, cfg.repeats, label)
            memory = kept_for_backward(bottleneck) / max(kept_for_backward(plain), 1)
            table.add_row(
                label,
                f"{1e3 * first:.2f}",
                f"{1e3 * second:.2f}",
                f"{second / first:.3f}",
                f"{memory:.2f}" if memory else "-",
                f"{bound:.2f}",
            )
    Console(width=120).print(table)


def alternate(first: Step, second: Step, repeats: int, label: str) -> tuple[float, float]:
    """Returns the median seconds of two steps that run in turns, each leading every other time."""
    times: dict[Step, list[float]] = {first: [], second: []}
    for _ in range(3):
        first(), second()
    for repeat in track(range(repeats), description=label, transient=True):
        for step in (first, second) if repeat % 2 else (second, first):
            start = time.perf_counter()
            step()
            times[step].append(time.perf_counter() - start)
    return statistics.median(times[first]), statistics.median(times[second])


def kept_for_backward(step: Step) -> int:
    """Counts the bytes of distinct tensors that a step's graph keeps."""
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        step()
    return sum(kept.values())


def training(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Makes a step with the optimizer of the recipes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    model.train()

    def step() -> None:
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation(model: nn.Module, x: Tensor) -> Step:
    """Makes an evaluation of a batch."""
    model.eval()

    def step() -> None:
        with torch.no_grad():
            model(x)

    return step


def against_linear(label: str, build: Callable[..., nn.Module], place: str, features: int, code: int, shape: tuple):
    """Yields training and evaluation of a model with a variational bottleneck against one with a wider linear layer."""
    x, y = torch.randn(128, *shape), torch.randint(10, (128,))

    def pair():
        wide = build(2 * code)
        wide.get_submodule(place).register_forward_hook(Widen(features, 2 * code, wide))
        narrow = ibreg.inject(build(code), {place: ibreg.VariationalBottleneck(features, code)})
        return wide, narrow

    wide, narrow = pair()
    yield (
        f"{label}, training step",
        training(wide, x, y),
        training(ibreg.Regularized(narrow), x, y),
        1.10 if place == "trunk" else 1.05,
    )
    wide, narrow = pair()
    yield f"{label}, evaluation", evaluation(wide, x), evaluation(narrow, x), 1.05


class Widen:
    """Sends a module's output through the linear layer that a variational bottleneck's encoder would be."""

    def __init__(self, features: int, width: int, model: nn.Module):
        self.linear = nn.Linear(features, width)
        model.add_module("widen", self.linear)

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Applies the layer to the feature axis, as the bottleneck does."""
        axis = 1 if output.dim() == 4 else -1
        return self.linear(output.movedim(axis, -1)).movedim(-1, axis)


def mlp_cases():
    """The MNIST multilayer perceptron of the variational information bottleneck."""

    def build(width):
        return models.build("mlp", input_shape=(1, 28, 28), classes=10, hidden=[1024, 1024], code_features=width)

    return against_linear("MNIST MLP, code 256, batch 128", build, "trunk", 1024, 256, (1, 28, 28))


def resnet20_cases():
    """ResNet-20 on 32 x 32 pictures."""

    def build(width):
        model = models.build("resnet20", input_shape=(3, 32, 32), classes=10)
        model.linear = nn.Linear(width, 10)
        return model

    return against_linear("ResNet-20, code 64, batch 128", build, "avgpool", 64, 64, (3, 32, 32))


def script_cases():
    """A training step of experiment=vib_mnist, 12 draws, against the same written by hand in one function."""
    x, y = torch.randn(100, 1, 28, 28), torch.randint(10, (100,))
    network = models.build("mlp", input_shape=(1, 28, 28), classes=10, hidden=[1024, 1024], code_features=256)
    ibreg.inject(network, {"trunk": ibreg.VariationalBottleneck(1024, 256)})
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512)
    )
    decoder = nn.Linear(256, 10)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=1e-6, fused=True)

    def by_hand() -> None:
        mean, raw = encoder(x).chunk(2, dim=1)
        scale = F.softplus(raw - 5)
        z = mean + scale * torch.randn(12, *mean.shape)
        rate = (0.5 * (mean**2 + scale**2 - 1) - scale.log()).sum(1).mean()
        logits = decoder(z)
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(12)) + 1e-3 * rate
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    yield "vib_mnist step, 12 draws, by hand", by_hand, training(ibreg.Regularized(network, draws=12), x, y), 1.30


CASES = {"mlp": mlp_cases, "resnet20": resnet20_cases, "script": script_cases}


if __name__ == "__main__":
    main()
