"""What a run trains: every method with every seed, the tuning grid, the information curve; and what is chosen of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from ibreg.runs.config.composition import build_bottleneck

CONTROLS = ("none", "null", "decayed", "dropout")
FACTORS = (0.1, 1, 10)
INFORMATION = ("I(X;Z)", "I(X;Z|Y)")


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        method: "none" (the control), "null" (the control from a second initialization), "decayed" (the control with weight
            decay), "dropout" (the control with dropout where the others have their bottleneck) or a bottleneck.
        seed: of initialization, order of the data, and noise.
        weight_decay: AdamW's.
        beta: of the bottleneck; None for the controls, and where a bottleneck keeps its configured one.
        sweep: whether it belongs to the information curve rather than to the comparison.
        stop: the epoch that it ends at and keeps; None: all epochs, of which validation chooses.
        dropout: share of values that the method "dropout" sets to 0; None for the others.
    """

    method: str
    seed: int
    weight_decay: float
    beta: float | None = None
    sweep: bool = False
    stop: int | None = None
    dropout: float | None = None

    @property
    def name(self) -> str:
        """Stem of the checkpoint's file."""
        beta = "" if self.beta is None else f"-beta{self.beta:g}"
        dropout = "" if self.dropout is None else f"{self.dropout:g}"
        stop = "" if self.stop is None else f"-stop{self.stop}"
        method = f"{'sweep-' if self.sweep else ''}{self.method}{dropout}"
        return f"{method}{beta}-decay{self.weight_decay:g}-seed{self.seed}{stop}"

    @property
    def key(self) -> tuple[int, int]:
        """What all randomness of the training follows from: the same for all methods of a seed but the null row."""
        return self.seed, int(self.method == "null")


def methods(cfg: DictConfig) -> list[str]:
    """Lists what is compared: the control, its second initialization, in some recipes others, and the bottlenecks."""
    further = {"decayed": bool(cfg.get("decayed_control")), "dropout": "dropout" in cfg}
    controls = [name for name in CONTROLS if further.get(name, True)]
    return [*(controls if cfg.control else ()), *cfg.bottlenecks]


def plan(cfg: DictConfig) -> tuple[list[Trial], list[Trial]]:
    """Lists the trainings of the comparison, without the null row's, and those of the information curve."""
    comparison, sweep = [], []
    for method in methods(cfg):
        if method == "null":
            continue
        is_control = method in CONTROLS
        for seed in cfg.seeds:
            trial = first_trial(cfg, method, seed)
            if not cfg.tune or method == "decayed":
                comparison.append(trial)
            elif method == "dropout":
                pairs = zip(cfg.grid.dropout, cfg.grid.weight_decay, strict=True)
                comparison += [replace(trial, dropout=float(rate), weight_decay=float(decay)) for rate, decay in pairs]
            elif is_control:
                comparison += [replace(trial, weight_decay=float(decay)) for decay in cfg.grid.weight_decay]
            else:
                comparison += [replace(trial, beta=float(beta)) for beta in beta_grid(cfg, method)]
        # Only a rate that means the same for any batch makes a curve.
        swept = method not in CONTROLS and "sweep" in cfg and cfg.schedule.name != "target_rate"
        if swept and build_bottleneck(cfg, method).rate_bounds in INFORMATION:
            first = Trial(method, cfg.seeds[0], float(cfg.weight_decay), sweep=True)
            sweep += [replace(first, beta=float(beta)) for beta in cfg.sweep.betas]
    return comparison, sweep


def first_trial(cfg: DictConfig, method: str, seed: int) -> Trial:
    """Returns the training of a method as it is configured, before anything is tuned."""
    decay = cfg.decayed_control if method == "decayed" else cfg.weight_decay
    return Trial(method, seed, float(decay), dropout=float(cfg.dropout) if method == "dropout" else None)


def beta_grid(cfg: DictConfig, method: str) -> Sequence[float]:
    """Returns the values that beta of a bottleneck is chosen from: betas of two bottlenecks have no common scale."""
    own = cfg.grid.betas.get(method, cfg.grid.beta)
    return [factor * build_bottleneck(cfg, method).initial_beta for factor in FACTORS] if own is None else own


def epochs_of(cfg: DictConfig, trial: Trial) -> int:
    """Returns how long a trial trains."""
    return trial.stop or (cfg.sweep.epochs if trial.sweep else cfg.epochs)


def epochs_in_all(cfg: DictConfig) -> int:
    """Returns how long all trainings of a run take together, the null row's included."""
    planned = sum(epochs_of(cfg, trial) for trials in plan(cfg) for trial in trials)
    return planned + (cfg.epochs * len(cfg.seeds) if cfg.control else 0)


def select(
    cfg: DictConfig, comparison: Sequence[Trial], quality: Callable[[Trial], tuple[float, ...]]
) -> dict[str, list[Trial]]:
    """Chooses one grid point for each method by its mean quality over seeds; the null row gets the control's.

    Args:
        cfg: the recipe's configuration.
        comparison: the trainings, as `plan` lists them.
        quality: how good a training is on validation data, larger is better; only asked where there is a choice.

    Returns:
        the chosen trainings of each method, in the order of the seeds. Those of the null row have yet to be run.
    """

    def mean_quality(trials):
        return tuple(sum(column) / len(trials) for column in zip(*map(quality, trials), strict=True))

    chosen: dict[str, list[Trial]] = {}
    for method in methods(cfg):
        if method == "null":
            chosen[method] = [replace(trial, method="null") for trial in chosen["none"]]
            continue
        points: dict[tuple, list[Trial]] = {}
        for trial in comparison:
            if trial.method == method:
                points.setdefault((trial.beta, trial.weight_decay, trial.dropout), []).append(trial)
        chosen[method] = max(points.values(), key=mean_quality) if len(points) > 1 else next(iter(points.values()))
    return chosen


def as_good_as(
    control: Sequence[Trial], others: Sequence[Trial], curve: Callable[[Trial], Sequence[float]]
) -> list[Trial]:
    """Stops the control of every seed as soon as it is as good as another method, to compare the two beyond that.

    A model that is worse is often more robust, and so is a control that is stopped early: what a method adds shows at
    equal clean error only.

    Args:
        control: its selected trainings, in the order of the seeds.
        others: those of the method.
        curve: the validation error of a training after each epoch, up to the one that it keeps.

    Returns:
        the trainings of the control up to that epoch; itself where it is never as good, or only at the epoch it keeps.
    """
    stopped = []
    for own, other in zip(control, others, strict=True):
        errors, wanted = curve(own), curve(other)[-1]
        epoch = next((epoch for epoch, error in enumerate(errors, start=1) if error <= wanted), len(errors))
        stopped.append(own if epoch == len(errors) else replace(own, stop=epoch))
    return stopped
