"""How one classifier stands attacks, corruptions and inputs of another kind, and whether these figures can be believed.

A stochastic model is attacked twice, by the gradient of the mean code and by that of the expectation over drawn codes,
and each of these with two losses, the cross-entropy and the margin. A sample counts as right if it withstands all of
them. What fools at one eps fools at a larger one, so that only what is left is attacked there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from ibreg.evaluation import corruptions, table_corruptions
from ibreg.evaluation.attacks.ensemble import attack_ensemble, check_ensemble
from ibreg.evaluation.attacks.gradient import fgsm, pgd
from ibreg.evaluation.attacks.objective import cross_entropy, margin
from ibreg.evaluation.attacks.sanity import sanity_checks
from ibreg.evaluation.classification.calibration import calibration_metrics
from ibreg.evaluation.classification.groups import group_accuracies
from ibreg.evaluation.out_of_distribution import detection_metrics, ood_scores
from ibreg.prediction import predict
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.pixels import Pixels
from ibreg.runs.data.rows import Rows
from ibreg.runs.methods import is_stochastic

BATCH = 250
IMAGES = 8  # examples of attacked images
NORMS = {"inf": "linf", "2": "l2"}  # as metrics name them


def measure_robustness(
    model: nn.Module, surrogate: nn.Module, data: ClassificationData, cfg: DictConfig, device: torch.device
) -> dict[str, Any]:
    """Measures one model on test data.

    Args:
        model: a trained classifier, wrapped in `Regularized` or not.
        surrogate: another one of the same task, trained by itself.
        data: its test part is used.
        cfg: the recipe's configuration: `attack`, `corruption`, `outliers`, `sanity` and `prediction_draws`.
        device: where.

    Returns:
        `metrics` by name, `checks` (name, passed, figures), whether the model is `stochastic`, `probabilities` and
        `targets` of the clean test part, `outliers` (score: inside, outside) and `examples` (attacked images); all
        that a checkpoint can hold.
    """
    pixels = pixels_of(cfg, data)
    subject = Subject(pixels.reader(model), cfg.prediction_draws)
    x, y = pixels.of(_inputs(data.test, len(data.test), device)), data.test.targets.to(device)
    probabilities = subject.probabilities(x)
    metrics = {"accuracy": subject.accuracy(x, y), "error": 1 - subject.accuracy(x, y)}
    metrics |= calibration_metrics(probabilities.cpu(), y.cpu()) | sparsity(model)
    if data.groups is not None:
        metrics |= group_accuracies(probabilities.argmax(1), y, data.groups(x, y), data.group_names)

    attacked, right = x[: cfg.attack.rows], y[: cfg.attack.rows]
    for norm, eps in radii(cfg).items():
        found = accuracies_under_attack(subject, attacked, right, eps=eps, norm=norm, options=cfg.attack, pixels=pixels)
        metrics |= {f"attacked/{attack}/{NORMS[norm]}/{radius:g}": value for (attack, radius), value in found.items()}
    if cfg.corruption.rows:
        metrics |= accuracies_under_corruption(subject, x[: cfg.corruption.rows], y[: cfg.corruption.rows], cfg, pixels)
    scores = {}
    if (outside := load_outside(cfg, data, x)) is not None:
        inside = x[: cfg.outliers.rows]
        both = [ood_scores(subject.model, part, draws=subject.draws) for part in (inside, outside.to(device))]
        scores = {name: tuple(score[name].cpu() for score in both) for name in both[0]}
        for name, (own, other) in scores.items():
            metrics |= {f"{figure}_{name}": value for figure, value in detection_metrics(own, other).items()}

    norm, eps = next(iter(radii(cfg).items()))
    checks = sanity_checks(
        subject.model,
        pixels.reader(surrogate),
        *(part[: cfg.sanity.rows] for part in (x, y)),
        eps=eps,
        norm=norm,
        steps=list(cfg.sanity.steps),
        clamp=pixels.clamp,
        expectation=subject.draws,  # the checks judge the predictor whose figures stand in the table
        batch_size=BATCH,
    )
    metrics["checks_passed"] = float(sum(check.passed for check in checks))
    return {
        "metrics": metrics,
        "checks": [{"name": each.name, "passed": each.passed, "figures": each.figures} for each in checks],
        "stochastic": subject.is_stochastic,
        "probabilities": probabilities.cpu(),
        "targets": y.cpu(),
        "outliers": scores,
        "examples": examples(subject, x, y, cfg, pixels) if pixels.are_images else {},
    }


class Subject:
    """A model that is measured: what it says of pixels.

    Args:
        model: takes pixels and returns logits.
        draws: codes averaged over at prediction, where there is a stochastic bottleneck; 0: the mean code.
    """

    def __init__(self, model: nn.Module, draws: int):
        self.model = model
        self.is_stochastic = is_stochastic(model)
        self.draws = draws if self.is_stochastic else 0

    def probabilities(self, x: Tensor) -> Tensor:
        """Returns the predicted probabilities, `(samples, classes)`."""
        parts = (
            predict(self.model, part, draws=self.draws, seed=place, mean="softmax")
            for place, part in enumerate(x.split(BATCH))
        )
        return torch.cat([part if self.draws else part.softmax(1) for part in parts])

    def is_right(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the most probable class is the right one, `(samples,)`."""
        return self.probabilities(x).argmax(1) == y

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Returns the share of right decisions."""
        return float(self.is_right(x, y).double().mean())


def accuracies_under_attack(
    subject: Subject, x: Tensor, y: Tensor, *, eps: Sequence[float], norm: str, options: DictConfig, pixels: Pixels
) -> dict[tuple[str, float], float]:
    """Attacks samples with FGSM, PGD and, where it is asked for, the strong ensemble.

    Args:
        subject: the model.
        x: pixels, `(samples, ...)`.
        y: classes, `(samples,)`.
        eps: radii, in ascending order.
        norm: "inf" or "2".
        options: `steps`, `step_size`, `restarts`, `draws` (of the expectation) and `ensemble`.
        pixels: the unit of eps.

    Returns:
        accuracies by attack and eps; at eps 0 without an attack.
    """
    ball = {"norm": norm, "clamp": pixels.clamp}
    clean = subject.is_right(x, y)
    expectations = (0, options.draws) if subject.is_stochastic else (0,)
    left = {attack: clean.clone() for attack in ("pgd", *(["ensemble"] if options.ensemble else []))}
    found = {(attack, 0.0): clean for attack in ("fgsm", *left)}
    for radius in eps:
        each = [
            subject.is_right(_batched(fgsm, subject, x, y, eps=radius, expectation=draws, **ball), y)
            for draws in expectations
        ]
        found["fgsm", radius] = torch.stack([clean, *each]).all(0)
        for draws in expectations:
            # What fools the mean code, or one set of draws, just so is no proof for a prediction by others.
            stop = draws == subject.draws == 0
            for loss in (cross_entropy, margin):
                length = options.step_size if norm == "inf" else None
                search = {
                    "step_size": length,
                    "steps": options.steps,
                    "restarts": options.restarts,
                    "loss": loss,
                    "early_stop": stop,
                }
                _attack_what_is_left(pgd, subject, x, y, left["pgd"], eps=radius, expectation=draws, **search, **ball)
            if options.ensemble:
                strong = {"attacks": list(options.ensemble), "eps": radius, "expectation": draws}
                _attack_what_is_left(attack_ensemble, subject, x, y, left["ensemble"], **strong, **ball)
        found |= {(attack, radius): standing.clone() for attack, standing in left.items()}
    return {key: float(right.double().mean()) for key, right in found.items()}


def accuracies_under_corruption(
    subject: Subject, x: Tensor, y: Tensor, cfg: DictConfig, pixels: Pixels
) -> dict[str, float]:
    """Measures the accuracy on every kind of corruption at every severity, and means over them."""
    metrics, errors = {"corrupted/none/0": subject.accuracy(x, y)}, []
    for kind in corruption_kinds(cfg, pixels):
        for severity in cfg.corruption.severities:
            probabilities = subject.probabilities(_corrupt(x, kind, severity, pixels))
            right = probabilities.argmax(1) == y
            metrics[f"corrupted/{kind}/{severity}"] = float(right.double().mean())
            errors.append(calibration_metrics(probabilities.cpu(), y.cpu())["ece"])
    accuracies = [value for name, value in metrics.items() if name != "corrupted/none/0"]
    return metrics | {
        "corrupted_accuracy": sum(accuracies) / len(accuracies),
        "corrupted_ece": sum(errors) / len(errors),
    }


def examples(subject: Subject, x: Tensor, y: Tensor, cfg: DictConfig, pixels: Pixels) -> dict[str, Any]:
    """Attacks a few images with PGD at the middle eps, to look at them; the classes before and after stand beside."""
    norm, eps = next(iter(radii(cfg).items()))
    radius = eps[len(eps) // 2]
    x, y = x[:IMAGES], y[:IMAGES]
    ball = {"eps": radius, "norm": norm, "clamp": pixels.clamp}
    attacked = pgd(subject.model, x, y, steps=cfg.attack.steps, expectation=subject.draws, **ball)
    said = [subject.probabilities(part).argmax(1).tolist() for part in (x, attacked)]
    return {"clean": x.cpu(), "attacked": attacked.cpu(), "said_of_clean": said[0], "said_of_attacked": said[1]}


def sparsity(model: nn.Module) -> dict[str, float]:
    """Returns the share of weights that pruning has set to 0, nothing for a model that was not pruned."""
    masks = [mask for name, mask in model.named_buffers() if name.endswith("weight_mask")]
    return {"sparsity": 1 - float(sum(mask.sum() for mask in masks)) / sum(map(torch.numel, masks))} if masks else {}


def radii(cfg: DictConfig) -> dict[str, list[float]]:
    """Returns the radii above 0 of each norm that is attacked in, in ascending order."""
    found = {norm: sorted({float(each) for each in eps if each > 0}) for norm, eps in _radii_by_norm(cfg).items()}
    return {norm: eps for norm, eps in found.items() if eps}


def _radii_by_norm(cfg: DictConfig) -> dict[str, Sequence[float]]:
    return {"inf": cfg.attack.eps, "2": cfg.attack.eps_l2}


def pixels_of(cfg: DictConfig, data: ClassificationData) -> Pixels:
    """Returns the unit of attacks and corruptions of a data set."""
    return Pixels(data.input_shape, cfg.data.get("mean"), cfg.data.get("std"))


def corruption_kinds(cfg: DictConfig, pixels: Pixels) -> list[str]:
    """Returns the kinds of corruption that are measured: those asked for, or all for data of this kind and size."""
    if cfg.corruption.kinds is not None:
        return list(cfg.corruption.kinds)
    return corruptions.names(pixels.side) if pixels.are_images else table_corruptions.names()


def load_outside(cfg: DictConfig, data: ClassificationData, x: Tensor) -> Tensor | None:
    """Loads inputs of another kind, as pixels; None where none are asked for.

    Args:
        cfg: `outliers.data`: a data set by name, "noise" (uniform between the least and the greatest value of the test
            part) or null; `outliers.rows`.
        data: the data of the training.
        x: its test part, as pixels.

    Raises:
        ValueError: they are the data of the training, or have another shape.
    """
    name, rows = cfg.outliers.data, cfg.outliers.rows
    if name is None:
        return None
    if name == cfg.data.name:
        raise ValueError(f"outliers.data={name} is the data of the training: choose another set, noise or null")
    if name == "noise":
        low, high = (0.0, 1.0) if len(data.input_shape) == 3 else (float(x.min()), float(x.max()))
        generator = torch.Generator().manual_seed(0)
        return low + (high - low) * torch.rand(min(rows, len(x)), *data.input_shape, generator=generator)
    place = {"root": cfg.data.root, "download": cfg.data.download}
    other = datasets.load(name, mean=0.0, std=1.0, validation=0, **place).test
    if tuple(other[0][0].shape) != tuple(data.input_shape):
        raise ValueError(
            f"outliers.data={name} has inputs of shape {tuple(other[0][0].shape)}, {data.name} of "
            f"{tuple(data.input_shape)}: choose a set of the same shape, noise or null"
        )
    return _inputs(other, rows, torch.device("cpu"))


def check_robustness(cfg: DictConfig, data: ClassificationData) -> None:
    """Checks what is asked to be measured.

    Raises:
        ImportError: the package of the ensemble is not installed.
        ValueError: no radius, an unknown corruption or attack, images too small for one, attacks that these data do
            not allow, something named twice, another kind of data that does not fit, a check without a second model.
    """
    pixels, attacked = pixels_of(cfg, data), radii(cfg)
    if not attacked:
        raise ValueError(
            "attack.eps and attack.eps_l2 have no radius above 0: give one of them, such as attack.eps=[0.1]"
        )
    for eps in attacked.values():
        if len({f"{radius:g}" for radius in eps}) < len(eps):  # as metrics name them
            raise ValueError(f"radii differ in their first six digits, got {eps}")
    length = cfg.attack.step_size
    if length is not None and not (type(length) in (int, float) and 0 < length < float("inf")):
        raise ValueError(f"attack.step_size is a number greater than 0, or null, got {length}")
    for name in ("attack.ensemble", "corruption.kinds", "corruption.severities", "sanity.steps"):
        value = OmegaConf.select(cfg, name)
        if value is not None and not isinstance(value, ListConfig):
            raise ValueError(f"{name} is a list, {name}=[{value}], got {value!r}")
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"{name} names each once, got {value}")
    if cfg.attack.ensemble:
        for norm in attacked:
            _check_ensemble(cfg.attack.ensemble, norm, data, pixels)
    if cfg.corruption.rows:
        if not cfg.corruption.severities or (cfg.corruption.kinds is not None and not cfg.corruption.kinds):
            raise ValueError("corruption.kinds and corruption.severities name some, or corruption.rows=0")
        for kind in corruption_kinds(cfg, pixels):
            for severity in cfg.corruption.severities:
                _corrupt(torch.zeros(1, *data.input_shape), kind, severity, pixels)
    if not cfg.sanity.steps or not all(type(steps) is int and steps > 0 for steps in cfg.sanity.steps):
        raise ValueError(f"sanity.steps are integers of at least 1, such as [1,10,40], got {cfg.sanity.steps}")
    if not cfg.control and len(cfg.seeds) * len(cfg.bottlenecks) < 2:
        raise ValueError("the sanity checks need a second model: control=true, another seed or another bottleneck")
    load_outside(cfg, data, pixels.of(_inputs(data.test, 2, torch.device("cpu"))))


def _check_ensemble(attacks: ListConfig, norm: str, data: ClassificationData, pixels: Pixels) -> None:
    try:
        check_ensemble(attacks, norm=norm, shape=data.input_shape, classes=data.classes, clamp=pixels.clamp)
    except ValueError as error:
        raise ValueError(f"attack.ensemble: {error}") from error


def _corrupt(x: Tensor, kind: str, severity: int, pixels: Pixels) -> Tensor:
    if not pixels.are_images:
        return table_corruptions.corrupt_table(x, kind, severity)
    return corruptions.corrupt(x, kind, severity)


def _inputs(rows: Rows, most: int, device: torch.device) -> Tensor:
    numbers = list(range(min(most, len(rows))))
    batches = [rows.__getitems__(numbers[first : first + BATCH])[0] for first in range(0, len(numbers), BATCH)]
    return torch.cat(batches).to(device)


def _batched(attack, subject: Subject, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return torch.cat([attack(subject.model, *part, seed=place, **options) for place, part in enumerate(_parts(x, y))])


def _attack_what_is_left(attack, subject: Subject, x: Tensor, y: Tensor, left: Tensor, **options: Any) -> None:
    """Attacks the samples that stood all attacks before, and takes those from `left` that fall.

    They are judged at their places among all samples: there each meets the codes that it met before, where other codes
    would fell some that no attack has changed.
    """
    rows = left.nonzero().squeeze(1)
    if len(rows):
        reached = x.clone()
        reached[rows] = _batched(attack, subject, x[rows], y[rows], **options)
        left &= subject.is_right(reached, y)


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(BATCH), y.split(BATCH), strict=True)
