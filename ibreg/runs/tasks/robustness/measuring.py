"""Measures one classifier under attacks and corruptions and on OOD inputs, with sanity checks of these figures.

A stochastic model is attacked through the mean code and through the expectation over sampled codes, each with two
losses, the cross-entropy and the margin. A sample counts as correct if it withstands all of them. A perturbation that
succeeds at one eps also lies in every larger ball, so that only the remaining samples are attacked there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.evaluation import corruptions, table_corruptions
from ibreg.evaluation.attacks.ensemble import attack_ensemble
from ibreg.evaluation.attacks.gradient import fgsm, pgd
from ibreg.evaluation.attacks.objective import cross_entropy, margin
from ibreg.evaluation.attacks.sanity import Check, sanity_checks
from ibreg.evaluation.classification.calibration import calibration_metrics
from ibreg.evaluation.classification.groups import group_accuracies
from ibreg.evaluation.out_of_distribution import detection_metrics, ood_scores
from ibreg.prediction import predict
from ibreg.runs.config.section import did_you_mean
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.rows import Rows
from ibreg.runs.methods import is_stochastic
from ibreg.runs.tasks.robustness.configuration import Attack as AttackSection
from ibreg.runs.tasks.robustness.configuration import Corruption, RobustnessConfig

BATCH = 250
EXAMPLES = 8  # attacked images that are shown
NORMS = {"inf": "linf", "2": "l2"}  # as metrics name them

Attack = Callable[..., Tensor]


def measure_robustness(
    model: nn.Module, surrogate: nn.Module, data: ClassificationData, cfg: RobustnessConfig, device: torch.device
) -> dict[str, Any]:
    """Measures one model on test data.

    Args:
        model: a trained classifier, wrapped in `Regularized` or not.
        surrogate: an independently trained classifier of the same task, for transferred attacks.
        data: its test rows are used.
        cfg: the recipe's configuration: `attack`, `corruption`, `ood`, `sanity` and `prediction_draws`.
        device: device of the model.

    Returns:
        A dict that a checkpoint can hold: `metrics` by name; `attacked` and `corrupted`, rows with the accuracy of each
        attack and corruption; `checks` (name, passed, figures); whether the model is `stochastic`; `probabilities` and
        `targets` of the clean test rows; `ood_scores` (score: in-distribution, OOD); and `examples` of attacked images.
    """
    subject = Subject(model, cfg.prediction_draws)
    x, y = some_inputs(data.test, len(data.test), device), data.test.targets.to(device)
    probabilities = subject.probabilities(x)
    corrupted, over_corruptions = measure_corruptions(subject, x, y, data, cfg.corruption)
    scores, detection = measure_detection(subject, x, data, cfg)
    checks = check_figures(subject, surrogate, x, y, data, cfg)
    return {
        "metrics": clean_metrics(probabilities, x, y, data)
        | sparsity(model)
        | over_corruptions
        | detection
        | {"checks_passed": float(sum(check.passed for check in checks))},
        "attacked": measure_attacks(subject, x, y, data, cfg.attack),
        "corrupted": corrupted,
        "checks": [{"name": check.name, "passed": check.passed, "figures": check.figures} for check in checks],
        "stochastic": subject.is_stochastic,
        "probabilities": probabilities.cpu(),
        "targets": y.cpu(),
        "ood_scores": scores,
        "examples": examples(subject, x, y, data, cfg.attack) if data.has_images else {},
    }


def attack_metric(attack: str, norm: str, eps: float) -> str:
    """Names the accuracy under an attack in the summary."""
    return f"attacked/{attack}/{norm}/{eps:g}"


def corruption_metric(kind: str, severity: int) -> str:
    """Names the accuracy under a corruption in the summary."""
    return f"corrupted/{kind}/{severity}"


class Subject:
    """The model that is measured, and its predictions.

    Args:
        model: a classifier that returns logits, wrapped in `Regularized` or not.
        draws: number of Monte Carlo samples at prediction, where there is a stochastic bottleneck; 0: the mean code.
    """

    def __init__(self, model: nn.Module, draws: int):
        self.model = model
        self.is_stochastic = is_stochastic(model)
        self.draws = draws if self.is_stochastic else 0

    def probabilities(self, x: Tensor) -> Tensor:
        """Returns the predicted probabilities, `(samples, classes)`."""
        outputs = (
            predict(self.model, batch, draws=self.draws, seed=index, mean="softmax")
            for index, batch in enumerate(x.split(BATCH))
        )
        return torch.cat([output if self.draws else output.softmax(1) for output in outputs])

    def is_correct(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the most probable class is the target, `(samples,)`."""
        return self.probabilities(x).argmax(1) == y


def accuracy_of(correct: Tensor) -> float:
    """Returns the fraction of correct predictions."""
    return float(correct.double().mean())


def clean_metrics(probabilities: Tensor, x: Tensor, y: Tensor, data: ClassificationData) -> dict[str, float]:
    """Measures accuracy and calibration on clean inputs, and the accuracy of groups where the data have some."""
    accuracy = accuracy_of(probabilities.argmax(1) == y)
    metrics = {"accuracy": accuracy, "error": 1 - accuracy}
    metrics |= calibration_metrics(probabilities.cpu(), y.cpu())
    if data.groups is not None:
        metrics |= group_accuracies(probabilities.argmax(1), y, data.groups(x, y), data.group_names)
    return metrics


def measure_attacks(
    subject: Subject, x: Tensor, y: Tensor, data: ClassificationData, options: AttackSection
) -> list[dict[str, Any]]:
    """Attacks the first `options.rows` samples in every norm; a row (attack, norm, eps, accuracy) for each eps."""
    x, y = x[: options.rows], y[: options.rows]
    return [
        row
        for norm, eps in radii(options).items()
        for row in accuracies_under_attack(subject, x, y, eps=eps, norm=norm, options=options, clamp=data.value_range)
    ]


def accuracies_under_attack(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float],
    norm: str,
    options: AttackSection,
    clamp: tuple[float, float] | None,
) -> list[dict[str, Any]]:
    """Attacks samples with FGSM, PGD and, if `options.ensemble` names attacks, the ensemble.

    Args:
        subject: the model.
        x: inputs, `(samples, ...)`.
        y: classes, `(samples,)`.
        eps: radii, in ascending order.
        norm: "inf" or "2".
        options: `steps`, `step_size`, `restarts`, `draws` (of the expectation) and `ensemble`.
        clamp: smallest and largest value of an input; None: no limits.

    Returns:
        A row for each attack and eps, with the accuracy; eps 0 is the clean accuracy.
    """
    ball = {"norm": norm, "clamp": clamp}
    clean = subject.is_correct(x, y)
    expectations = (0, options.draws) if subject.is_stochastic else (0,)
    remaining = {attack: clean.clone() for attack in ("pgd", *(["ensemble"] if options.ensemble else []))}
    correct = {(attack, 0.0): clean for attack in ("fgsm", *remaining)}
    for radius in eps:
        after_fgsm = [
            subject.is_correct(_batched(fgsm, subject, x, y, eps=radius, expectation=draws, **ball), y)
            for draws in expectations
        ]
        correct["fgsm", radius] = torch.stack([clean, *after_fgsm]).all(0)
        for draws in expectations:
            for search in _pgd_searches(subject, norm, draws, options):
                _attack_remaining(pgd, subject, x, y, remaining["pgd"], eps=radius, **search, **ball)
            if options.ensemble:
                ensemble = {"attacks": list(options.ensemble), "eps": radius, "expectation": draws}
                _attack_remaining(attack_ensemble, subject, x, y, remaining["ensemble"], **ensemble, **ball)
        correct |= {(attack, radius): samples.clone() for attack, samples in remaining.items()}
    return [
        {"attack": attack, "norm": NORMS[norm], "eps": radius, "accuracy": accuracy_of(samples)}
        for (attack, radius), samples in correct.items()
    ]


def _pgd_searches(subject: Subject, norm: str, draws: int, options: AttackSection) -> list[dict[str, Any]]:
    """Lists the options of PGD, once for each loss."""
    return [
        {
            "steps": options.steps,
            "step_size": options.step_size if norm == "inf" else None,
            "restarts": options.restarts,
            "loss": loss,
            "expectation": draws,
            # A point that barely fools the mean code, or one set of samples, may not fool a prediction by others.
            "early_stop": draws == subject.draws == 0,
        }
        for loss in (cross_entropy, margin)
    ]


def measure_corruptions(
    subject: Subject, x: Tensor, y: Tensor, data: ClassificationData, options: Corruption
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measures accuracy and calibration under every kind of corruption at every severity.

    Args:
        subject: the model.
        x: inputs, `(samples, ...)`.
        y: classes, `(samples,)`.
        data: decides which kinds there are.
        options: `rows`, `kinds` and `severities`.

    Returns:
        A row (kind, severity, accuracy) for each corruption and for the clean inputs ("none", 0), and the means over
        corruptions; both are empty if `options.rows` is 0.
    """
    if not options.rows:
        return [], {}
    x, y = x[: options.rows], y[: options.rows]
    rows, errors = [], []
    for kind in corruption_kinds(options, data):
        for severity in options.severities:
            probabilities = subject.probabilities(corrupt_inputs(x, kind, severity, data))
            accuracy = accuracy_of(probabilities.argmax(1) == y)
            rows.append({"kind": kind, "severity": severity, "accuracy": accuracy})
            errors.append(calibration_metrics(probabilities.cpu(), y.cpu())["ece"])
    means = {
        "corrupted_accuracy": sum(row["accuracy"] for row in rows) / len(rows),
        "corrupted_ece": sum(errors) / len(errors),
    }
    clean = {"kind": "none", "severity": 0, "accuracy": accuracy_of(subject.is_correct(x, y))}
    return [clean, *rows], means


def measure_detection(
    subject: Subject, x: Tensor, data: ClassificationData, cfg: RobustnessConfig
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Scores test inputs and OOD inputs, and measures how well each score detects the latter.

    Returns:
        Per score its values on in-distribution and on OOD inputs, and the detection metrics; both are empty if no OOD
        data are configured.
    """
    ood = load_ood(cfg, data, x)
    if ood is None:
        return {}, {}
    inside, outside = (
        ood_scores(subject.model, inputs, draws=subject.draws) for inputs in (x[: cfg.ood.rows], ood.to(x.device))
    )
    scores = {name: (inside[name].cpu(), outside[name].cpu()) for name in inside}
    metrics = {
        f"{metric}_{name}": value
        for name, values in scores.items()
        for metric, value in detection_metrics(*values).items()
    }
    return scores, metrics


def check_figures(
    subject: Subject, surrogate: nn.Module, x: Tensor, y: Tensor, data: ClassificationData, cfg: RobustnessConfig
) -> list[Check]:
    """Runs the sanity checks on the first `sanity.rows` samples, in the first norm that is attacked in."""
    norm, eps = next(iter(radii(cfg.attack).items()))
    return sanity_checks(
        subject.model,
        surrogate,
        x[: cfg.sanity.rows],
        y[: cfg.sanity.rows],
        eps=eps,
        norm=norm,
        steps=list(cfg.sanity.steps),
        clamp=data.value_range,
        expectation=subject.draws,  # the checks judge the predictor whose figures are in the table
        batch_size=BATCH,
    )


def examples(
    subject: Subject, x: Tensor, y: Tensor, data: ClassificationData, options: AttackSection
) -> dict[str, Any]:
    """Attacks a few images with PGD at the middle eps, to show them with the classes predicted before and after."""
    norm, eps = next(iter(radii(options).items()))
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    ball = {"eps": eps[len(eps) // 2], "norm": norm, "clamp": data.value_range}
    attacked = pgd(subject.model, x, y, steps=options.steps, expectation=subject.draws, **ball)
    of_clean, of_attacked = (subject.probabilities(images).argmax(1).tolist() for images in (x, attacked))
    return {
        "clean": x.cpu(),
        "attacked": attacked.cpu(),
        "predicted_clean": of_clean,
        "predicted_attacked": of_attacked,
    }


def sparsity(model: nn.Module) -> dict[str, float]:
    """Returns the fraction of pruned weights, nothing for a model that was not pruned."""
    masks = [mask for name, mask in model.named_buffers() if name.endswith("weight_mask")]
    return {"sparsity": 1 - float(sum(mask.sum() for mask in masks)) / sum(map(torch.numel, masks))} if masks else {}


def radii(options: AttackSection) -> dict[str, list[float]]:
    """Returns the radii above 0 of each norm that is attacked in, in ascending order."""
    by_norm = {"inf": options.eps, "2": options.eps_l2}
    above = {norm: sorted({float(radius) for radius in eps if radius > 0}) for norm, eps in by_norm.items()}
    return {norm: eps for norm, eps in above.items() if eps}


def corruption_kinds(options: Corruption, data: ClassificationData) -> list[str]:
    """Returns the kinds of corruption that are measured: `options.kinds`, or all that the inputs allow."""
    if options.kinds is not None:
        return list(options.kinds)
    return corruptions.names(min(data.input_shape[1:])) if data.has_images else table_corruptions.names()


def corrupt_inputs(x: Tensor, kind: str, severity: int, data: ClassificationData) -> Tensor:
    """Corrupts images, or rows of a table."""
    return (corruptions.corrupt if data.has_images else table_corruptions.corrupt_table)(x, kind, severity)


def load_ood(cfg: RobustnessConfig, data: ClassificationData, x: Tensor) -> Tensor | None:
    """Loads OOD inputs; None if none are configured.

    Args:
        cfg: `ood.data`: the name of a data set, "noise" (uniform over the range of the values) or null; `ood.rows`.
        data: the training data.
        x: its test inputs.

    Raises:
        ValueError: If the OOD data are the training data, or have another shape.
    """
    name, rows = cfg.ood.data, cfg.ood.rows
    if name is None:
        return None
    if name == cfg.data.name:
        raise ValueError(f"ood.data must not be the training data, got {name}: use another data set, noise or null")
    if name not in ("noise", *datasets.names()):
        close = did_you_mean(name, datasets.names())
        raise ValueError(f"ood.data must be noise, null or one of {', '.join(datasets.names())}, got {name}{close}")
    if name == "noise":
        low, high = data.value_range or (float(x.min()), float(x.max()))
        generator = torch.Generator().manual_seed(0)
        return low + (high - low) * torch.rand(min(rows, len(x)), *data.input_shape, generator=generator)
    other = datasets.load(name, validation=0, root=cfg.data.root, download=cfg.data.download)
    if other.input_shape != tuple(data.input_shape):
        raise ValueError(
            f"ood.data={name} has inputs of shape {other.input_shape}, {data.name} of {tuple(data.input_shape)}: use a "
            "data set of the same shape, noise or null"
        )
    return some_inputs(other.test, rows, torch.device("cpu"))


def some_inputs(rows: Rows, most: int, device: torch.device) -> Tensor:
    """Returns the first inputs, at most `most`."""
    indices = list(range(min(most, len(rows))))
    batches = [rows.__getitems__(indices[first : first + BATCH])[0] for first in range(0, len(indices), BATCH)]
    return torch.cat(batches).to(device)


def _batched(attack: Attack, subject: Subject, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return torch.cat(
        [attack(subject.model, *batch, seed=index, **options) for index, batch in enumerate(_batches(x, y))]
    )


def _attack_remaining(
    attack: Attack, subject: Subject, x: Tensor, y: Tensor, remaining: Tensor, **options: Any
) -> None:
    """Attacks the samples that withstood all attacks before, and removes those that do not withstand this one.

    They are predicted at their positions among all samples, where each meets the same sampled codes as before: other
    codes would change predictions that no attack has changed.
    """
    rows = remaining.nonzero().squeeze(1)
    if len(rows):
        attacked = x.clone()
        attacked[rows] = _batched(attack, subject, x[rows], y[rows], **options)
        remaining &= subject.is_correct(attacked, y)


def _batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(BATCH), y.split(BATCH), strict=True)
