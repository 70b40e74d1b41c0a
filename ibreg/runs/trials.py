"""The training runs of a recipe: every method with every seed and grid point, the information curve; and selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ibreg.runs.config.composition import configured_beta, rate_bounds

FACTORS = (0.1, 1, 10)
INFORMATION = ("I(X;Z)", "I(X;Z|Y)")
SECOND = {"null": "none"}  # second initializations, and the method whose grid point each of them takes


class Point(NamedTuple):
    """A point of the grid of a method.

    Attributes:
        weight_decay: AdamW's; None where the optimizer has none.
        setting: the option that the grid of the method is over, usually `beta`, and its value; None for a method that
            keeps its configured options.
    """

    weight_decay: float | None
    setting: tuple[str, float] | None = None


@dataclass(frozen=True)
class Control:
    """A method without one of the compared bottlenecks.

    Attributes:
        compared: whether a configuration has it, if it has controls.
        configured: its point without tuning.
        grid: the points that it is tuned over.
        option: the option of its layer that the setting gives a value to; None without a layer. The layer is the
            registered one of the same name, where the other methods have their bottleneck.
    """

    compared: Callable[[DictConfig], bool]
    configured: Callable[[DictConfig], Point]
    grid: Callable[[DictConfig], list[Point]]
    option: str | None = None


def _plain(cfg: DictConfig) -> Point:
    return Point(float(cfg.weight_decay))


def _decays(cfg: DictConfig) -> list[Point]:
    return [Point(float(decay)) for decay in cfg.grid.weight_decay]


CONTROLS = {
    "none": Control(lambda cfg: True, _plain, _decays),
    "null": Control(lambda cfg: True, _plain, _decays),
    "decayed": Control(  # with a weight decay of its own, which is not tuned
        lambda cfg: bool(cfg.get("decayed_control")),
        lambda cfg: Point(float(cfg.decayed_control)),
        lambda cfg: [Point(float(cfg.decayed_control))],
    ),
    "dropout": Control(
        lambda cfg: "dropout" in cfg,
        lambda cfg: Point(float(cfg.weight_decay), ("dropout", float(cfg.dropout))),
        lambda cfg: [
            Point(float(decay), ("dropout", float(rate)))
            for rate, decay in zip(cfg.grid.dropout, cfg.grid.weight_decay, strict=True)
        ],
        option="rate",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        method: a control of `CONTROLS`, a bottleneck, or in some recipes a learner without one.
        seed: of initialization, order of the data, and noise.
        weight_decay: as in `Point`.
        setting: as in `Point`.
        sweep: whether it belongs to the information curve rather than to the comparison.
        stop: the epoch that it ends at and keeps; None: all epochs, of which validation selects.
    """

    method: str
    seed: int
    weight_decay: float | None = None
    setting: tuple[str, float] | None = None
    sweep: bool = False
    stop: int | None = None

    @property
    def beta(self) -> float | None:
        """Beta of the bottleneck; None for controls, and where the configured one is kept."""
        return self.value("beta")

    def value(self, option: str) -> float | None:
        """Returns the value of an option if the grid of the method is over that option, else None."""
        return self.setting[1] if self.setting is not None and self.setting[0] == option else None

    @property
    def name(self) -> str:
        """Stem of the checkpoint's file."""
        setting = ""
        if self.setting is not None:
            option, value = self.setting
            setting = f"{value:g}" if option == self.method else f"-{option}{value:g}"
        decay = "" if self.weight_decay is None else f"-decay{self.weight_decay:g}"
        stop = "" if self.stop is None else f"-stop{self.stop}"
        return f"{'sweep-' if self.sweep else ''}{self.method}{setting}{decay}-seed{self.seed}{stop}"

    @property
    def key(self) -> tuple[int, int]:
        """The key of all randomness of the run: shared by all methods of a seed except a second initialization."""
        return self.seed, int(self.method in SECOND)

    def row(self) -> dict[str, Any]:
        """Returns the columns of `metrics.csv` that identify the run."""
        row = {"method": self.method, "seed": self.seed, "weight_decay": self.weight_decay, "beta": self.beta}
        return row | {"sweep": self.sweep, "stop": self.stop} | dict([self.setting] if self.setting else [])


def option_of(trial: Trial) -> tuple[str, float] | None:
    """Returns the option that a trial sets in its layer, and the value; None where it sets none."""
    if trial.setting is None or trial.method not in CONTROLS:
        return trial.setting
    option = CONTROLS[trial.method].option
    return None if option is None else (option, trial.setting[1])


def methods(cfg: DictConfig) -> list[str]:
    """Lists the compared methods: controls, in some recipes learners without a bottleneck, and bottlenecks."""
    controls = [name for name, control in CONTROLS.items() if control.compared(cfg)]
    return [*(controls if cfg.control else ()), *cfg.get("learners", ()), *cfg.bottlenecks]


def points_of(cfg: DictConfig, method: str) -> list[Point]:
    """Returns the points that a method is trained at: with `tune` those of its grid, else the configured one."""
    if "settings" in cfg:  # a list for each method, of which a trial has the index
        return [Point(None, ("setting", index)) for index in range(len(settings_of(cfg, method)))]
    if method in CONTROLS:
        return CONTROLS[method].grid(cfg) if cfg.tune else [CONTROLS[method].configured(cfg)]
    decay = float(cfg.weight_decay)
    return [Point(decay, ("beta", float(beta))) for beta in beta_grid(cfg, method)] if cfg.tune else [Point(decay)]


def settings_of(cfg: DictConfig, method: str) -> list[dict[str, Any]]:
    """Returns the settings that a method is trained with: with `tune` all of its list in `settings`, else the first."""
    given: Any = OmegaConf.to_container(cfg.settings[SECOND.get(method, method)], resolve=True)
    return given if cfg.tune else given[:1]


def beta_grid(cfg: DictConfig, method: str) -> Sequence[float]:
    """Returns the grid of beta of a bottleneck: betas of different bottlenecks have no common scale."""
    own = cfg.grid.betas.get(method, cfg.grid.beta)
    return [factor * configured_beta(cfg, method) for factor in FACTORS] if own is None else own


def plan(cfg: DictConfig) -> tuple[list[Trial], list[Trial]]:
    """Lists the trials of the comparison, without those of a second initialization, and of the information curve.

    A method with several points is tuned on the first `tuning_seeds` seeds, by default on all of them.
    """
    comparison = []
    for method in methods(cfg):
        points = points_of(cfg, method) if method not in SECOND else []
        seeds = cfg.seeds[: cfg.get("tuning_seeds")] if len(points) > 1 else cfg.seeds
        comparison += [Trial(method, seed, *point) for seed in seeds for point in points]
    sweep = []
    # With a target rate beta is not fixed.
    if "sweep" in cfg and cfg.schedule.name != "target_rate":
        first = Trial("", cfg.seeds[0], float(cfg.weight_decay), sweep=True)
        swept = [method for method, bound in rate_bounds(cfg).items() if bound in INFORMATION]
        settings = [("beta", float(beta)) for beta in cfg.sweep.betas]
        sweep = [replace(first, method=method, setting=setting) for method in swept for setting in settings]
    return comparison, sweep


def epochs_of(cfg: DictConfig, trial: Trial) -> int:
    """Returns the number of epochs of a trial, over each of its stages."""
    return trial.stop or (cfg.sweep.epochs if trial.sweep else cfg.epochs)


def select(
    cfg: DictConfig, comparison: Sequence[Trial], quality: Callable[[Trial], tuple[float, ...]]
) -> dict[str, list[Trial]]:
    """Selects one grid point for each method by its mean quality over seeds; of equal ones the first.

    Args:
        cfg: the recipe's configuration.
        comparison: the trials, as `plan` lists them.
        quality: of a trial on validation data, larger is better; only called where there are several points.

    Returns:
        the trials of each method at its point, in the order of the seeds. Those of a second initialization, and of
        seeds that the method was not tuned on, have yet to be run.
    """

    def mean_quality(trials: Sequence[Trial]) -> tuple[float, ...]:
        return tuple(sum(column) / len(trials) for column in zip(*map(quality, trials), strict=True))

    selected: dict[str, list[Trial]] = {}
    for method in methods(cfg):
        if method in SECOND:
            selected[method] = [replace(trial, method=method) for trial in selected[SECOND[method]]]
            continue
        points: dict[tuple, list[Trial]] = {}
        for trial in comparison:
            if trial.method == method:
                points.setdefault((trial.setting, trial.weight_decay), []).append(trial)
        best = max(points.values(), key=mean_quality) if len(points) > 1 else next(iter(points.values()))
        selected[method] = [replace(best[0], seed=seed) for seed in cfg.seeds]
    return selected


def as_good_as(
    control: Sequence[Trial], others: Sequence[Trial], curve: Callable[[Trial], Sequence[float]]
) -> list[Trial]:
    """Truncates each run of the control at the epoch where it reaches the validation error of a method.

    A model with a larger clean error is often more robust, and so is a control that is stopped early: methods are
    compared with a control of equal clean error.

    Args:
        control: its selected trials, in the order of the seeds.
        others: those of the method.
        curve: the validation error of a trial after each epoch, up to the one that it keeps.

    Returns:
        the trials of the control up to that epoch; the control itself where it reaches that error never, or only at the
        epoch that it keeps.
    """
    stopped = []
    for own, other in zip(control, others, strict=True):
        errors, wanted = curve(own), curve(other)[-1]
        epoch = next((epoch for epoch, error in enumerate(errors, start=1) if error <= wanted), len(errors))
        stopped.append(own if epoch == len(errors) else replace(own, stop=epoch))
    return stopped


def epochs_in_all(cfg: DictConfig, epochs: Callable[[DictConfig, Trial], int] = epochs_of) -> int:
    """Returns the number of epochs of all trials of a run together, those of the selected points included."""
    comparison, sweep = plan(cfg)
    selected = select(cfg, comparison, lambda trial: ())  # any point: there are equally many trials of each
    return sum(epochs(cfg, trial) for trial in {*comparison, *sweep, *chain(*selected.values())})
