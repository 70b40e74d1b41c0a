"""The training runs of a recipe: every method with every seed and grid point, the information curve; and selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from ibreg.runs.beta_schedules import BetaSchedule
from ibreg.runs.config.composition import BottleneckConfig, build_bottleneck, configured_beta, rate_bounds
from ibreg.runs.config.section import Count, Different, Names, NotNegative, Section, check_known

FACTORS = (0.1, 1, 10)
INFORMATION = ("I(X;Z)", "I(X;Z|Y)")
SECOND = {"null": "none"}  # second initializations, and the method whose grid point each of them takes


class ComparisonConfig(BottleneckConfig):
    """The methods that a run compares.

    Attributes:
        bottlenecks: one or several, trained next to the controls.
        control: whether the model without a bottleneck is trained too.
        seeds: of the training runs, the same for all methods.
        epochs: passes over the training rows.
        tune: whether grid points are selected on validation data.
    """

    bottlenecks: Annotated[list[str], *Different]
    control: bool
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, examples=[[0, 1, 2]]), *Different]
    epochs: Count
    tune: bool

    @model_validator(mode="after")
    def _check_bottlenecks(self):
        if own := set(CONTROLS) & set(self.bottlenecks):
            raise ValueError(f"bottlenecks must be none of the controls {', '.join(CONTROLS)}, got {', '.join(own)}")
        for method in self.bottlenecks:
            build_bottleneck(self, method)
        if not methods(self):
            raise ValueError("there is nothing to train: name bottlenecks, or use control=true")
        return self


class Grid(Section):
    """The values that methods are tuned over, equally many for each.

    Attributes:
        beta: of every bottleneck; None: 0.1, 1 and 10 times the beta that it is configured with.
        betas: of some bottlenecks, instead.
        weight_decay: of the controls.
    """

    beta: list[NotNegative] | None
    betas: dict[str, list[NotNegative]]
    weight_decay: list[NotNegative]


class Sweep(Section):
    """The information curve.

    Attributes:
        betas: one training run for each.
        epochs: of each.
    """

    betas: list[NotNegative]
    epochs: Count


class GridConfig(ComparisonConfig):
    """Methods with weight decay and beta.

    Attributes:
        weight_decay: of all methods; with `tune` that of controls is from the grid.
        grid: the values that methods are tuned over.
        schedule: of beta over the training steps.
    """

    weight_decay: NotNegative
    grid: Grid
    schedule: BetaSchedule

    @model_validator(mode="after")
    def _check_grid(self):
        rates = self.schedule.rate if isinstance(self.schedule.rate, dict) else {}
        for key, named in (("grid.betas", self.grid.betas), ("schedule.rate", rates)):
            check_known(key, named, self.bottleneck)
        if rates and (without := [method for method in self.bottlenecks if method not in rates]):
            raise ValueError(f"schedule.rate has no rate for {', '.join(without)}: give one number for all, or add it")
        for method in self.bottlenecks:
            if self.tune and not len(beta_grid(self, method)) == len(self.grid.weight_decay) > 0:
                raise ValueError(
                    f"grid.weight_decay and the grid of beta of {method} (grid.beta, or its own in grid.betas) must "
                    "have equally many values, so that the control is tuned as hard"
                )
        names = [trial.name for trials in plan(self) for trial in trials]
        if len(set(names)) < len(names):
            raise ValueError(
                "two training runs are the same: values of a grid of beta, of grid.weight_decay and sweep.betas must "
                "differ"
            )
        return self


class SweepConfig(GridConfig):
    """Methods with an information curve.

    Attributes:
        sweep: the information curve.
    """

    sweep: Sweep


# What a setting may be is checked where its method is built.
Settings = Annotated[
    list[dict[str, Any]], Field(json_schema_extra={"valid": "a list of settings with lr, such as [{lr:0.1}]"})
]


class SettingsConfig(ComparisonConfig):
    """Methods that are tuned over a list of settings each.

    Attributes:
        learners: methods without a bottleneck.
        settings: of each method, mappings of its options.
        tuning_seeds: number of seeds that settings are tried on.
    """

    learners: Names
    settings: dict[str, Settings]
    tuning_seeds: Count


class Point(NamedTuple):
    """A point of the grid of a method.

    Attributes:
        weight_decay: of the optimizer; None where the method has its own.
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

    compared: Callable[[ComparisonConfig], bool]
    configured: Callable[[Any], Point]
    grid: Callable[[Any], list[Point]]
    option: str | None = None


def _plain(cfg: GridConfig) -> Point:
    return Point(float(cfg.weight_decay))


def _decays(cfg: GridConfig) -> list[Point]:
    return [Point(float(decay)) for decay in cfg.grid.weight_decay]


def _dropout_points(cfg: Any) -> list[Point]:
    if len(cfg.grid.dropout) != len(cfg.grid.weight_decay):
        raise ValueError("grid.dropout and grid.weight_decay must have equally many values: they are tried in pairs")
    pairs = zip(cfg.grid.dropout, cfg.grid.weight_decay, strict=True)
    return [Point(float(decay), ("dropout", float(rate))) for rate, decay in pairs]


CONTROLS = {
    "none": Control(lambda cfg: True, _plain, _decays),
    "null": Control(lambda cfg: True, _plain, _decays),
    "decayed": Control(  # with a weight decay of its own, which is not tuned
        lambda cfg: bool(getattr(cfg, "decayed_control", 0)),
        lambda cfg: Point(float(cfg.decayed_control)),
        lambda cfg: [Point(float(cfg.decayed_control))],
    ),
    "dropout": Control(
        lambda cfg: "dropout" in cfg,
        lambda cfg: Point(float(cfg.weight_decay), ("dropout", float(cfg.dropout))),
        _dropout_points,
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


def methods(cfg: ComparisonConfig) -> list[str]:
    """Lists the compared methods: controls, in some recipes learners without a bottleneck, and bottlenecks."""
    controls = [name for name, control in CONTROLS.items() if control.compared(cfg)]
    return [*(controls if cfg.control else ()), *getattr(cfg, "learners", ()), *cfg.bottlenecks]


def points_of(cfg: ComparisonConfig, method: str) -> list[Point]:
    """Returns the points that a method is trained at: with `tune` those of its grid, else the configured one."""
    if isinstance(cfg, SettingsConfig):  # a list for each method, of which a trial has the index
        return [Point(None, ("setting", index)) for index in range(len(settings_of(cfg, method)))]
    assert isinstance(cfg, GridConfig)
    if method in CONTROLS:
        return CONTROLS[method].grid(cfg) if cfg.tune else [CONTROLS[method].configured(cfg)]
    decay = float(cfg.weight_decay)
    return [Point(decay, ("beta", float(beta))) for beta in beta_grid(cfg, method)] if cfg.tune else [Point(decay)]


def settings_of(cfg: SettingsConfig, method: str) -> list[dict[str, Any]]:
    """Returns the settings that a method is trained with: with `tune` all of its list in `settings`, else the first."""
    given = cfg.settings[SECOND.get(method, method)]
    return given if cfg.tune else given[:1]


def beta_grid(cfg: GridConfig, method: str) -> Sequence[float]:
    """Returns the grid of beta of a bottleneck: betas of different bottlenecks have no common scale."""
    own = cfg.grid.betas.get(method, cfg.grid.beta)
    return [factor * configured_beta(cfg, method) for factor in FACTORS] if own is None else own


def plan(cfg: ComparisonConfig) -> tuple[list[Trial], list[Trial]]:
    """Lists the trials of the comparison, without those of a second initialization, and of the information curve.

    A method with several points is tuned on the first `tuning_seeds` seeds, by default on all of them.
    """
    comparison = []
    for method in methods(cfg):
        points = points_of(cfg, method) if method not in SECOND else []
        seeds = cfg.seeds[: getattr(cfg, "tuning_seeds", None)] if len(points) > 1 else cfg.seeds
        comparison += [Trial(method, seed, *point) for seed in seeds for point in points]
    sweep = []
    # With a target rate beta is not fixed.
    if isinstance(cfg, SweepConfig) and cfg.schedule.name != "target_rate":
        first = Trial("", cfg.seeds[0], float(cfg.weight_decay), sweep=True)
        swept = [method for method, bound in rate_bounds(cfg, cfg.bottlenecks).items() if bound in INFORMATION]
        settings = [("beta", float(beta)) for beta in cfg.sweep.betas]
        sweep = [replace(first, method=method, setting=setting) for method in swept for setting in settings]
    return comparison, sweep


def epochs_of(cfg: ComparisonConfig, trial: Trial) -> int:
    """Returns the number of epochs of a trial, over each of its stages."""
    return trial.stop or (cfg.sweep.epochs if trial.sweep and isinstance(cfg, SweepConfig) else cfg.epochs)


def select(
    cfg: ComparisonConfig, comparison: Sequence[Trial], quality: Callable[[Trial], tuple[float, ...]]
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


def epochs_in_all(cfg: ComparisonConfig, epochs: Callable[[ComparisonConfig, Trial], int] = epochs_of) -> int:
    """Returns the number of epochs of all trials of a run together, those of the selected points included."""
    comparison, sweep = plan(cfg)
    selected = select(cfg, comparison, lambda trial: ())  # any point: there are equally many trials of each
    return sum(epochs(cfg, trial) for trial in {*comparison, *sweep, *chain(*selected.values())})
