"""The keys of the recipe of class-incremental learning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from ibreg.runs.config.recipe import RunConfig
from ibreg.runs.config.section import Count, Different, Name, Section, Share, check_known, did_you_mean, one_of
from ibreg.runs.data import streams
from ibreg.runs.data.split import Request
from ibreg.runs.tasks.continual import learners
from ibreg.runs.trials import SECOND, SettingsConfig, methods
from ibreg.surgery.unlearning import ORDERS, check_unlearning

LEARNERS = [name for name in learners.names() if name != "linear"]  # that is the control


class OtherData(Section):
    """Another data set, whose further options are those of its own.

    Attributes:
        name: of the data set; None: none.
    """

    model_config = ConfigDict(extra="allow")
    name: str | None


class Unlabeled(OtherData):
    """Inputs without labels, to initialize keys and standardize features with.

    Attributes:
        limit: largest number of rows; 0: all.
    """

    limit: Annotated[int, Field(ge=0)]


class Unlearning(Section):
    """Unlearning of classes by bottlenecks with keys, after the last split.

    Attributes:
        classes: indices of the classes; empty: none.
        by: order in which pairs are masked.
        pairs: number of pairs to mask; None: `fraction`.
        fraction: of the pairs that their rows activate.
    """

    classes: Annotated[list[Annotated[int, Field(ge=0)]], *Different]
    by: Annotated[str, *one_of(ORDERS)]
    pairs: Count | None
    fraction: Annotated[float, Field(gt=0, le=1)] | None

    @model_validator(mode="after")
    def _check_one_of_both(self):
        try:
            check_unlearning(self.by, self.pairs, self.fraction)
        except ValueError as error:
            raise ValueError(f"unlearning: {error}") from error
        return self


class Initialization(Section):
    """Initialization of keys, before they are frozen.

    Attributes:
        method: exponential moving average or k-means.
        epochs: passes over the unlabeled inputs.
    """

    method: Literal["ema", "k_means"]
    epochs: Count


class ContinualConfig(RunConfig, SettingsConfig):
    """The keys of the recipe of class-incremental learning.

    Attributes:
        data: the data set whose classes arrive split by split.
        encoder: name and options of the frozen encoder.
        learners: methods without a bottleneck.
        classes_per_split: number of classes of a split.
        shuffle_classes: whether the order of the classes depends on the seed.
        unlabeled: inputs without labels, to initialize keys with.
        ood: out-of-distribution data.
        unlearning: of classes, after the last split.
        initialize: initialization of keys.
        momentum: of SGD.
        label_smoothing: of the task loss.
        learner: options that all settings of a learner share.
        cache: folder of features, keys and trained encoders.
    """

    model_config = ConfigDict(title="continual")
    data: Annotated[SerializeAsAny[Request], BeforeValidator(streams.request)]
    encoder: dict[str, Any]
    learners: Annotated[list[Annotated[str, *one_of(LEARNERS)]], *Different]
    classes_per_split: Count
    shuffle_classes: bool
    unlabeled: Unlabeled
    ood: OtherData
    unlearning: Unlearning
    initialize: Initialization
    momentum: Share
    label_smoothing: Share
    learner: dict[str, dict[str, Any]]
    cache: Name

    @model_validator(mode="after")
    def _check_learners(self):
        if both := [name for name in self.bottlenecks if name in LEARNERS]:
            raise ValueError(f"bottlenecks must be none of the learners {', '.join(LEARNERS)}, got {', '.join(both)}")
        if unknown := [name for name in self.learner if name not in LEARNERS]:
            raise ValueError(
                f"learner must have sections of {', '.join(LEARNERS)}, got {', '.join(unknown)}"
                f"{did_you_mean(unknown[0], LEARNERS)}"
            )
        if self.tuning_seeds > len(self.seeds):
            raise ValueError(
                f"tuning_seeds must be at most {len(self.seeds)}, the number of seeds, got {self.tuning_seeds}"
            )
        return self

    @model_validator(mode="after")
    def _check_settings(self):
        """Checks that every method has equally many settings, so that all are tuned as hard."""
        known = ["none", *LEARNERS, *self.bottleneck]
        check_known("settings", self.settings, known)
        counts = {method: self._count_settings(method) for method in methods(self) if method not in SECOND}
        if self.tune and len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} of {method}" for method, count in counts.items())
            raise ValueError(
                f"settings must be equally many for each method, so that all are tuned as hard, got {listed}"
            )
        if self.tune and max(counts.values()) > 1 and not self.data.validation:
            raise ValueError("tune=true selects on validation data: give data.validation, or tune=false")
        return self

    def _count_settings(self, method: str) -> int:
        given = self.settings.get(method, [])
        if not given:
            raise ValueError(f"settings.{method} must be a list of settings with lr, such as [{{lr:0.1}}], got {given}")
        for setting in given:
            lr = setting.get("lr")
            if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < float("inf"):
                raise ValueError(f"lr of every setting in settings.{method} must be a number above 0, got {setting}")
        if len({str(sorted(setting.items())) for setting in given}) < len(given):
            raise ValueError(f"the settings in settings.{method} must differ, got {given}")
        return len(given)
