"""Fine-tuning: its configuration, the pretrained backbone, the test sets, and the metrics on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from ibreg.evaluation import corruptions
from ibreg.optimization import FREEZE_MODES, freeze, head_name
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.config.recipe import TrainingConfig
from ibreg.runs.config.section import (
    Count,
    Different,
    Name,
    Names,
    NotNegative,
    Positive,
    Section,
    Share,
    one_of,
)
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.few_shot import corrupted, of_classes, spread
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request, data_folder
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.pretraining import pretrain
from ibreg.runs.seeding import seed_all
from ibreg.runs.tasks.classification import Classified, classify
from ibreg.runs.trials import Grid

NumberOrAll = Annotated[int, Field(ge=0)]  # 0: all
Overrides = Annotated[
    dict[str, Any], Field(json_schema_extra={"valid": "overrides of data, such as {path:pets_from_another_camera},"})
]
ON_OTHER_IMAGES = ("accuracy", "error", "nll", "ece")


class Pretraining(Section):
    """Pretraining of a backbone without a file of weights.

    Attributes:
        classes: indices of the classes to pretrain on, which are not fine-tuned; empty: no pretraining.
        epochs: passes over their rows.
        lr: learning rate.
    """

    classes: Annotated[list[Annotated[int, Field(ge=0)]], *Different]
    epochs: Count
    lr: Positive


class Degraded(Section):
    """A test set of corrupted or shifted images.

    Attributes:
        kinds: kinds of corruption, whose mean is taken; empty: no such test set.
        severity: from 1 (mild) to 5 (severe).
        rows: number of test images, evenly spaced; 0: all.
    """

    kinds: Annotated[list[Annotated[str, *one_of(corruptions.names())]], *Different]
    severity: Annotated[int, Field(ge=1, le=5)]
    rows: NumberOrAll


class DropoutGrid(Grid):
    """The values that methods are tuned over, equally many for each.

    Attributes:
        dropout: rates of the control with dropout, in pairs with weight decay.
    """

    dropout: list[Share]


class FinetuneConfig(TrainingConfig):
    """The keys of the fine-tuning recipe.

    Attributes:
        data: the data set.
        shots: labeled images per class, including those held out; 0: all.
        mode: what is trained besides bottlenecks.
        last_stage: modules of mode=last_stage; None: the last child with parameters before the head.
        new_head: whether the head is re-initialized.
        pretraining: of a backbone without a file of weights.
        dropout: rate of the control with dropout.
        grid: the values that methods are tuned over.
        steps: smallest number of training steps.
        lr_backbone: learning rate of all parameters but those of bottleneck and head.
        label_smoothing: fraction of every label that is spread over all classes.
        mixup: alpha of mixup; 0: no mixup.
        test_rows: test images, evenly spaced; 0: all.
        corrupted: test set of corrupted images.
        shifted: test set of rotated and translated images.
        other_data: overrides of `data`, for a test set of another data set.
    """

    model_config = ConfigDict(title="finetune")
    data: Annotated[SerializeAsAny[Request], BeforeValidator(datasets.request)]
    shots: Annotated[list[NumberOrAll], Field(min_length=1), *Different]
    mode: Annotated[str, *one_of(FREEZE_MODES)]
    last_stage: Name | Names | None
    new_head: bool
    pretraining: Pretraining
    dropout: Share
    grid: DropoutGrid  # pyright: ignore[reportIncompatibleVariableOverride]
    steps: NumberOrAll
    lr_backbone: NotNegative
    label_smoothing: Share
    mixup: NotNegative
    test_rows: NumberOrAll
    corrupted: Degraded
    shifted: Degraded
    other_data: Overrides | None

    @model_validator(mode="after")
    def _check_trained_parts(self):
        if self.mode == "frozen":
            idle = [method for method in self.bottlenecks if not build_bottleneck(self, method).sized]
            if idle:
                raise ValueError(f"mode=frozen trains bottlenecks alone, and {', '.join(idle)} has no parameters")
        return self


def load(cfg: FinetuneConfig) -> tuple[Rows | None, ClassificationData]:
    """Loads the rows to pretrain on, if any, and the data to fine-tune on, without a validation split.

    Raises:
        ValueError: If the inputs are no images, or there are no such classes.
    """
    data = datasets.load(**{**dict(cfg.data), "validation": 0})
    if len(data.input_shape) != 3:
        raise ValueError(f"fine-tuning takes images, but an input of {data.name} has the shape {data.input_shape}")
    if not cfg.pretraining.classes:
        return None, data
    source = list(cfg.pretraining.classes)
    first = of_classes(data, source)
    return first.train, of_classes(data, [label for label in range(data.classes) if label not in source])


def backbone_of(
    cfg: FinetuneConfig, data: ClassificationData, source: Rows | None
) -> Callable[[int | None], nn.Module]:
    """Returns a builder of the pretrained network, frozen as configured; its argument is as in `build_network`.

    Raises:
        ValueError: When it is called, for weights of another network, and modules that do not exist.
    """
    options = cfg.model.options()
    if options.get("weights") is not None:
        root = data_folder(cfg.data.root)
        under = root / Path(options["weights"]).expanduser()
        options["weights"] = str(under) if under.exists() else options["weights"]

    def new(classes: int, code_features: int | None) -> nn.Module:
        return models.build(
            **options,
            input_shape=data.input_shape,
            classes=classes,
            code_features=code_features,
            normalization=data.normalization,
        )

    @cache
    def pretrained() -> dict[str, Tensor]:
        if source is None:
            return {}
        seed_all(0)  # one backbone, as from a file, for all seeds of the fine-tuning
        return pretrain(
            new(len(cfg.pretraining.classes), None), source, epochs=cfg.pretraining.epochs, batch_size=cfg.batch_size,
            lr=cfg.pretraining.lr, seed=0,
        )  # fmt: skip

    def build(code_features: int | None) -> nn.Module:
        weights = pretrained()
        model = new(data.classes, code_features)
        model.load_state_dict({**model.state_dict(), **weights})
        if cfg.new_head:
            head: Any = model.get_submodule(head_name(model))
            head.reset_parameters()
        return freeze(model, cfg.mode, cfg.last_stage)

    return build


def new_parts(backbone: Callable[[int | None], nn.Module]) -> list[str]:
    """Returns the names of the parameters that no weights were loaded into: they differ between two builds."""
    with torch.random.fork_rng(devices=[]):
        first, second = (dict(backbone(None).named_parameters()) for _ in range(2))
    return [name for name in first if not torch.equal(first[name], second[name])]


def sets_to_test(cfg: FinetuneConfig, data: ClassificationData) -> dict[str, list[Rows]]:
    """Returns the test sets: the clean images, corrupted and shifted ones, and those of another data set.

    Raises:
        ValueError: If images are too small for a corruption, or the other data set has other classes or sizes.
    """
    test = spread(data.test, cfg.test_rows)
    sets = {"clean": [test]}
    for name, degraded in (("corrupted", cfg.corrupted), ("shifted", cfg.shifted)):
        rows = spread(test, degraded.rows)
        made = [corrupted(rows, kind, degraded.severity) for kind in degraded.kinds]
        sets |= {name: made} if made else {}
    if cfg.other_data is not None:
        # Another kind of data set has other options of its own.
        same = cfg.other_data.get("name", cfg.data.name) == cfg.data.name
        shared = {key: value for key, value in cfg.data if same or key in Request.model_fields}
        asked = {**shared, "validation": 0, **cfg.other_data}
        other = datasets.load(**dict(datasets.request(asked, "other_data")))
        if cfg.pretraining.classes:
            other = of_classes(other, [c for c in range(other.classes) if c not in cfg.pretraining.classes])
        if (other.class_names, other.input_shape) != (data.class_names, data.input_shape):
            raise ValueError(
                f"other_data has classes {', '.join(other.class_names)} and inputs {other.input_shape}, but the data "
                f"have {', '.join(data.class_names)} and {data.input_shape}"
            )
        sets["other"] = [spread(other.test, cfg.test_rows)]
    return sets


def measure(
    model: nn.Module, sets: Mapping[str, Sequence[Rows]], accelerator: Accelerator, *, draws: int
) -> tuple[Classified, dict[str, float]]:
    """Tests a model on all test sets.

    Returns:
        the predictions on the clean images; and their metrics, with accuracy, error, NLL and ECE on the other sets, as
        `accuracy_corrupted`, means over the kinds of a set.
    """
    clean = classify(model, sets["clean"][0], accelerator, draws=draws)
    metrics = clean.metrics()
    for name, parts in sets.items():
        if name != "clean":
            kinds = [classify(model, rows, accelerator, draws=draws).metrics() for rows in parts]
            metrics |= {f"{key}_{name}": fmean(of_kind[key] for of_kind in kinds) for key in ON_OTHER_IMAGES}
    return clean, metrics
