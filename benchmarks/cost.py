"""Cost of bottlenecks: medians of alternating runs, as ratios to a model with plain layers instead.

    python benchmarks/cost.py                # every case
    python benchmarks/cost.py repeats=50 cases=[mlp]
    python benchmarks/cost.py cases=[overhead] repeats=9               # every bottleneck after a ResNet and a ViT
    python benchmarks/cost.py cases=[overhead] repeats=9 only=hsic     # the rows of one of them
    python benchmarks/cost.py cases=[lookup] repeats=5                 # searches for keys
    python benchmarks/cost.py cases=[] samples=[128,1024,4096]         # kernel quantities, forward and backward
    python benchmarks/cost.py cases=[attack] repeats=15                # PGD against another library

Times are CPU seconds of all threads. They depend on the machine and its load; alternating runs see the same load, so
their ratio is what counts. The memory of a network is that of the tensors kept for the backward pass, counted exactly;
that of a kernel quantity is the peak memory of the process above that before the step (Linux).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import ibreg
from benchmarks.quantities import INVERTING, QUANTITIES
from benchmarks.stopwatch import Step, alternate, in_turns, kept_for_backward, peak_memory
from ibreg.evaluation.attacks.gradient import pgd
from ibreg.functional import nearest, product_nearest
from ibreg.runs.models import classifiers as models

CONFIGS = Path(__file__).resolve().parent

ADAM = partial(torch.optim.AdamW, lr=1e-6, fused=True)


@hydra.main(config_path=str(CONFIGS), config_name="cost", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs the cases and prints a row of ratios for each."""
    unknown = [case for case in cfg.cases if case not in CASES]
    if unknown or cfg.repeats < 1:
        raise ValueError(
            f"cases must be some of {', '.join(CASES)} and repeats at least 1, got {cfg.cases} and {cfg.repeats}"
        )
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.cases:
        networks(cfg)
    if cfg.samples:
        quantities(cfg)


def networks(cfg: DictConfig) -> None:
    """Measures the steps of networks with a bottleneck against those with a plain layer in its place."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {cfg.repeats}")
    print_row("case", "plain (ms)", "ours (ms)", "ratio", "memory kept", "at most")
    for case in cfg.cases:
        for label, plain, bottleneck, bound in CASES[case]():
            if cfg.only not in label:
                continue
            first, second = alternate(plain, bottleneck, cfg.repeats, label)
            memory = kept_for_backward(bottleneck) / max(kept_for_backward(plain), 1)
            print_row(
                label,
                f"{1e3 * first:.2f}",
                f"{1e3 * second:.2f}",
                f"{second / first:.3f}",
                f"{memory:.2f}" if memory else "-",
                "-" if bound is None else f"{bound:.2f}",
            )


def quantities(cfg: DictConfig) -> None:
    """Measures kernel quantities, forward and backward, against dense and published forms and a floor of operations."""
    print(f"x 64-d, code 256-d, float32, {torch.get_num_threads()} threads")
    print_row("quantity, samples", "ours (ms)", "dense/ours", "publ./ours", "ours/floor", "peak (MB)")
    for samples in cfg.samples:
        torch.manual_seed(0)
        x = torch.randn(samples, 64)
        code = (torch.randn(samples, 256) + x.repeat(1, 4)).requires_grad_()
        for name, (ours, dense, published, products) in QUANTITIES.items():
            if name in INVERTING and samples > cfg.largest_dense / 2:
                continue  # it inverts whole matrices
            textbooks = (dense, published) if samples <= cfg.largest_dense else ()
            forms = [partial(forward_and_backward, form, x, code) for form in (ours, *filter(None, textbooks))]
            repeats = max(1, min(cfg.repeats, int(2e7 / samples**2)))
            memory = peak_memory(forms[0])
            times = in_turns(forms, repeats, f"{name}, {samples} samples")
            print_row(
                f"{name}, {samples:,}",
                f"{1e3 * times[0]:.1f}",
                *([f"{time / times[0]:.1f}" for time in times[1:]] + ["-", "-"])[:2],
                f"{times[0] / (products * 2 * samples**2 / operations_per_second()):.1f}",
                "-" if memory is None else f"{memory / 2**20:.0f}",
            )


def print_row(label: str, *cells: str) -> None:
    """Prints a row as soon as it is measured, as a benchmark may be stopped before its last."""
    print(f"{label:<60}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def forward_and_backward(quantity: Callable, x: Tensor, code: Tensor) -> None:
    """Evaluates a quantity and its gradient with respect to the code."""
    torch.autograd.grad(quantity(x, code), code)


@cache
def operations_per_second() -> float:
    """Measures the throughput of matrix products; a multiplication and an addition count as two operations."""
    a = torch.randn(2048, 2048)
    seconds, _ = alternate(lambda: a @ a, lambda: None, 5, "matrix products")
    return 2 * 2048**3 / seconds


def training(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    task_loss: Callable[..., Tensor] = F.cross_entropy,
    descent: Callable = ADAM,
    concepts: Tensor | None = None,
) -> Step:
    """Returns a training step, by default with the optimizer of the recipes."""
    optimizer = descent(model.parameters())
    criterion = ibreg.Penalized(task_loss)
    further = {"target": y, "concepts": concepts} if isinstance(model, ibreg.Regularized) else {}
    model.train()

    def step() -> None:
        criterion(model(x, **further), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation(model: nn.Module, x: Tensor) -> Step:
    """Returns an evaluation step of a batch."""
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
    """Hook that applies a linear layer of the size of a variational bottleneck's encoder to the output of a module."""

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
    """ResNet-20 on 32 x 32 images."""

    def build(width):
        model = models.build("resnet20", input_shape=(3, 32, 32), classes=10)
        model.linear = nn.Linear(width, 10)
        return model

    return against_linear("ResNet-20, code 64, batch 128", build, "avgpool", 64, 64, (3, 32, 32))


def script_cases():
    """A training step of experiment=vib_mnist, 12 samples of the code, against one function without the library."""
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

    yield "vib_mnist step, 12 samples, by hand", by_hand, training(ibreg.Regularized(network, draws=12), x, y), 1.30


def kernel_layer_cases():
    """The regression network of arXiv 2404.17951 with a bottleneck over all pairs of a batch, against it without."""
    x, y = torch.randn(128, 8), torch.randn(128, 1)

    def build():
        return models.build("mlp", input_shape=(8,), classes=1, hidden=[128, 128, 128], decoder=[128])

    for name in ("cauchy_schwarz", "hsic", "nonlinear"):
        model = ibreg.Regularized(ibreg.inject(build(), {"trunk": ibreg.build(name)}, example=x))
        steps = (training(network, x, y, F.mse_loss) for network in (build(), model))
        yield f"{name}, 8-128-128-128, batch 128, step", *steps, None


def overhead_cases(compiled: bool = False):
    """Every bottleneck with its defaults, as wide as its input, after a ResNet-20 and a ViT-tiny of 65 tokens."""
    torch.manual_seed(0)
    x, y, concepts = torch.randn(128, 3, 32, 32), torch.randint(10, (128,)), torch.rand(128, 8).round()
    for network, build, place, features in (
        ("ResNet-20", partial(models.build, "resnet20", input_shape=(3, 32, 32), classes=10), "avgpool", 64),
        ("ViT-tiny", vision_transformer, "encoder.ln", 192),
    ):
        for name in ibreg.names():
            options = {"concepts": concepts.shape[1], "out_features": features, "straight_through": True}
            options = {key: value for key, value in options.items() if key in ibreg.registry.options(name)}
            layer = ibreg.build(name, in_features=features, **options)
            plain, model = build(), ibreg.Regularized(ibreg.inject(build(), {place: layer}))
            if compiled:
                torch._dynamo.reset()  # it would take the graph of an equal network without bottleneck, after a few
                plain.compile()
                model.compile()
            steps = training(plain, x, y), training(model, x, y, concepts=concepts)
            yield f"{name}, {network}, batch 128, {'compiled ' if compiled else ''}step", *steps, 1.10


def vision_transformer() -> nn.Module:
    """Builds a ViT-tiny for 32 x 32 images, in patches of 4 x 4."""
    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10
    )


def attack_cases():
    """PGD-40 on the LeNet without early stop, against the adversarial-robustness-toolbox (in the plain column)."""
    try:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise ImportError('the case "attack" compares with a library: pip install "ibreg[attacks]"') from error
    x, y = torch.rand(128, 1, 28, 28), torch.randint(10, (128,))
    network = models.build("lenet", input_shape=(1, 28, 28), classes=10).eval()
    for norm, eps in ((math.inf, 0.1), (2, 1.0)):
        classifier = PyTorchClassifier(
            network, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        library = ProjectedGradientDescentPyTorch(
            classifier, norm=norm, eps=eps, eps_step=eps / 10, max_iter=40, num_random_init=1, batch_size=128,
            verbose=False,
        )  # fmt: skip
        yield (
            f"PGD-40, LeNet, norm {norm}, batch 128",
            partial(library.generate, x.numpy(), F.one_hot(y, 10).float().numpy()),
            partial(pgd, network, x, y, eps=eps, norm=norm, steps=40, step_size=eps / 10, clamp=(0.0, 1.0)),
            1.10,
        )


def lookup_cases():
    """Searches in the sizes of arXiv 2207.11240 and larger ones, and a training step against a linear probe."""
    torch.manual_seed(0)
    queries, keys = torch.randn(256, 256, 14), torch.randn(256, 4096, 14)

    def full() -> Tensor:
        return torch.cdist(queries, keys).argmin(-1)

    def chunked() -> Tensor:
        return nearest(queries, keys)[1].squeeze(-1)

    peaks = peak_memory(chunked), peak_memory(full)
    peak = "not known" if None in peaks else f"{peaks[0] / peaks[1]:.3f}"
    two_nearest = nearest(queries, keys, top_k=2)[0].sqrt()
    clear = two_nearest[..., 1] - two_nearest[..., 0] > 1e-5 * two_nearest[..., 1]
    others = int((full() != chunked())[clear].sum())
    yield f"4,096 keys, to cdist: {others} other indices, peak {peak}", full, chunked, 1.00

    sub_keys = torch.randn(16, 2, 256, 7)
    pairs = torch.cat([sub_keys[:, 0].repeat_interleave(256, 1), sub_keys[:, 1].repeat(1, 256, 1)], -1)
    exact, product = (partial(find, queries[:16], of) for find, of in ((nearest, pairs), (product_nearest, sub_keys)))
    others = int((exact()[1] != product()[1]).sum())
    yield f"65,536 keys, product to exact: {others} other indices", exact, product, 0.10

    x, y = torch.randn(256, 384), torch.randint(10, (256,))
    descent = partial(torch.optim.SGD, lr=0.3)
    for sparse in (False, True):
        layer = ibreg.KeyValueBottleneck(384, 10, codebooks=256, pairs=4096, key_features=14, sparse_gradients=sparse)
        layer.freeze_keys()
        steps = (training(model, x, y, descent=descent) for model in (nn.Linear(384, 10), ibreg.Regularized(layer)))
        yield f"key_value, {'sparse' if sparse else 'dense'} gradients, step, to linear probe", *steps, None


CASES = {
    "mlp": mlp_cases,
    "resnet20": resnet20_cases,
    "script": script_cases,
    "kernel_layers": kernel_layer_cases,
    "overhead": overhead_cases,
    "overhead_compiled": partial(overhead_cases, compiled=True),
    "attack": attack_cases,
    "lookup": lookup_cases,
}


if __name__ == "__main__":
    main()
