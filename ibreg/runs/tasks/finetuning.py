"""Fine-tuning: checks of its configuration, the pretrained backbone, the test sets, and the metrics on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from ibreg.evaluation import corruptions
from ibreg.optimization import FREEZE_MODES, freeze, head_name
from ibreg.runs.config.checks import is_number, require
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.few_shot import corrupted, of_classes, spread
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import data_folder
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.pretraining import pretrain
from ibreg.runs.seeding import seed_all
from ibreg.runs.tasks.classification import Classified, classify

INTEGERS = {"steps": 0, "pretraining.epochs": 1, "test_rows": 0, "corrupted.rows": 0, "shifted.rows": 0}
ON_OTHER_IMAGES = ("accuracy", "error", "nll", "ece")


def check_fine_tuning(cfg: DictConfig) -> None:
    """Checks the keys that only this recipe has.

    Raises:
        ValueError: If something is wrong; the message names the key and what is valid.
    """
    shots = list(cfg.shots) if isinstance(cfg.shots, ListConfig) else []
    valid = shots and len(set(shots)) == len(shots) and all(type(count) is int and count >= 0 for count in shots)
    require(valid, "shots", "one or more different numbers of images per class, 0 for all", cfg.shots)
    require(cfg.mode in FREEZE_MODES, "mode", f"one of {', '.join(FREEZE_MODES)}", cfg.mode)
    require(isinstance(cfg.new_head, bool), "new_head", "true or false", cfg.new_head)
    for key in ("lr_backbone", "pretraining.lr"):
        value = OmegaConf.select(cfg, key)
        require(is_number(value, least=0), key, "a number of at least 0", value)
    for key, least in INTEGERS.items():
        value = OmegaConf.select(cfg, key)
        require(type(value) is int and value >= least, key, f"an integer of at least {least}", value)
    for key in ("pretraining.classes", "corrupted.kinds", "shifted.kinds"):
        value = OmegaConf.select(cfg, key)
        require(isinstance(value, ListConfig), key, "a list, [] for none", value)
    valid = isinstance(cfg.other_data, DictConfig | None)
    require(valid, "other_data", "null or overrides of data such as {path: other_pets}", cfg.other_data)
    names = corruptions.names()
    for section in ("corrupted", "shifted"):
        unknown, severity = sorted(set(cfg[section].kinds) - set(names)), cfg[section].severity
        require(not unknown, f"{section}.kinds", f"some of {', '.join(names)}", ", ".join(unknown))
        require(severity in (1, 2, 3, 4, 5), f"{section}.severity", "1, 2, 3, 4 or 5", severity)
    if cfg.mode == "frozen":
        idle = [method for method in cfg.bottlenecks if not build_bottleneck(cfg, method).sized]
        if idle:
            raise ValueError(f"mode=frozen trains bottlenecks alone, and {', '.join(idle)} has no parameters")


def load(cfg: DictConfig) -> tuple[Rows | None, ClassificationData]:
    """Loads the rows to pretrain on, if any, and the data to fine-tune on, without a validation split.

    Raises:
        ValueError: If the inputs are no images, or there are no such classes.
    """
    data = datasets.load(**{**cfg.data, "validation": 0})
    if len(data.input_shape) != 3:
        raise ValueError(f"fine-tuning takes images, but an input of {data.name} has the shape {data.input_shape}")
    if not cfg.pretraining.classes:
        return None, data
    source = list(cfg.pretraining.classes)
    first = of_classes(data, source)
    return first.train, of_classes(data, [label for label in range(data.classes) if label not in source])


def backbone_of(cfg: DictConfig, data: ClassificationData, source: Rows | None) -> Callable[[int | None], nn.Module]:
    """Returns a builder of the pretrained network, frozen as configured; its argument is as in `build_network`.

    Raises:
        ValueError: When it is called, for weights of another network, and modules that do not exist.
    """
    options: Any = {key: value for key, value in cfg.model.items() if key != "inject_at"}
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


def sets_to_test(cfg: DictConfig, data: ClassificationData) -> dict[str, list[Rows]]:
    """Returns the test sets: the clean images, corrupted and shifted ones, and those of another data set.

    Raises:
        ValueError: If images are too small for a corruption, or the other data set has other classes or sizes.
    """
    test = spread(data.test, cfg.test_rows)
    sets = {"clean": [test]}
    for name in ("corrupted", "shifted"):
        rows = spread(test, cfg[name].rows)
        made = [corrupted(rows, kind, cfg[name].severity) for kind in cfg[name].kinds]
        sets |= {name: made} if made else {}
    if cfg.other_data is not None:
        other = datasets.load(**{**cfg.data, "validation": 0, **cfg.other_data})
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
