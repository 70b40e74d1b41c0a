"""What fine-tuning adds to a recipe: its checks, its backbone, its test sets, and what is measured on them."""

from __future__ import annotations

import math
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
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.few_shot import corrupted, of_classes, spread
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import data_folder
from ibreg.runs.methods import build_bottleneck
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.pretraining import pretrain
from ibreg.runs.seeding import seed_all
from ibreg.runs.tasks.classification import Classified, classify

INTEGERS = {"steps": 0, "pretraining.epochs": 1, "test_rows": 0, "corrupted.rows": 0, "shifted.rows": 0}
ON_OTHER_IMAGES = ("accuracy", "error", "nll", "ece")


def check_fine_tuning(cfg: DictConfig) -> None:
    """Checks what only this recipe has.

    Raises:
        ValueError: something is wrong; the message names the key and what is valid.
    """
    shots = list(cfg.shots) if isinstance(cfg.shots, ListConfig) else []
    if len(set(shots)) < max(len(shots), 1) or not all(type(count) is int and count >= 0 for count in shots):
        raise ValueError(f"shots are one or more different numbers of images of each class, 0 for all, got {cfg.shots}")
    if cfg.mode not in FREEZE_MODES:
        raise ValueError(f"mode is one of {', '.join(FREEZE_MODES)}, got {cfg.mode}")
    if not isinstance(cfg.new_head, bool):
        raise ValueError(f"new_head is true or false, got {cfg.new_head}")
    for key in ("lr_backbone", "pretraining.lr"):
        value = OmegaConf.select(cfg, key)
        if not (type(value) in (int, float) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{key} is a number of at least 0, got {value}")
    for key, least in INTEGERS.items():
        value = OmegaConf.select(cfg, key)
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is an integer of at least {least}, got {value}")
    for key in ("pretraining.classes", "corrupted.kinds", "shifted.kinds"):
        if not isinstance(OmegaConf.select(cfg, key), ListConfig):
            raise ValueError(f"{key} is a list, [] for none, got {OmegaConf.select(cfg, key)}")
    if not isinstance(cfg.other_data, DictConfig | None):
        raise ValueError(f"other_data is null or overrides of data such as {{path: other_pets}}, got {cfg.other_data}")
    for section in ("corrupted", "shifted"):
        unknown = sorted(set(cfg[section].kinds) - set(corruptions.names()))
        if unknown:
            raise ValueError(f"{section}.kinds are of {', '.join(corruptions.names())}, got {', '.join(unknown)}")
        if cfg[section].severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"{section}.severity is 1, 2, 3, 4 or 5, got {cfg[section].severity}")
    if cfg.mode == "frozen":
        idle = [method for method in cfg.bottlenecks if not build_bottleneck(cfg, method).sized]
        if idle:
            raise ValueError(f"mode=frozen trains bottlenecks alone, and {', '.join(idle)} has no parameters")


def load(cfg: DictConfig) -> tuple[Rows | None, ClassificationData]:
    """Loads the rows to pretrain on, if any, and the data to fine-tune on, all of its training rows in one part.

    Raises:
        ValueError: no images; classes that the data do not have.
    """
    data = datasets.load(**{**cfg.data, "validation": 0})
    if len(data.input_shape) != 3:
        raise ValueError(f"fine-tuning here is for images, but an input of {data.name} has shape {data.input_shape}")
    if not cfg.pretraining.classes:
        return None, data
    source = list(cfg.pretraining.classes)
    first = of_classes(data, source)
    return first.train, of_classes(data, [label for label in range(data.classes) if label not in source])


def backbone_of(cfg: DictConfig, data: ClassificationData, source: Rows | None) -> Callable[[int | None], nn.Module]:
    """Returns what builds the pretrained network, frozen as configured, for a code of another width if asked.

    Raises:
        ValueError: when it is called: weights of another network, modules that do not exist.
    """
    options = {key: value for key, value in cfg.model.items() if key != "inject_at"}
    if options.get("weights") is not None:
        root = data_folder(cfg.data.root)
        under = root / Path(options["weights"]).expanduser()
        options["weights"] = str(under) if under.exists() else options["weights"]

    def new(classes: int, code_features: int | None) -> nn.Module:
        return models.build(**options, input_shape=data.input_shape, classes=classes, code_features=code_features)

    @cache
    def pretrained() -> dict[str, Tensor]:
        if source is None:
            return {}
        seed_all(0)  # as of a file: the same for all seeds of the fine-tuning
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
    """Names the parameters of a network that no weights were loaded into: they differ between two builds."""
    with torch.random.fork_rng(devices=[]):
        first, second = (dict(backbone(None).named_parameters()) for _ in range(2))
    return [name for name in first if not torch.equal(first[name], second[name])]


def sets_to_test(cfg: DictConfig, data: ClassificationData) -> dict[str, list[Rows]]:
    """Returns the test images as they are ("clean"), corrupted, shifted, and those of another data set.

    Raises:
        ValueError: images too small for a corruption, another data set with other classes or sizes.
    """
    test = spread(data.test, cfg.test_rows)
    sets = {"clean": [test]}
    for name in ("corrupted", "shifted"):
        some = spread(test, cfg[name].rows)
        made = [
            corrupted(some, kind, cfg[name].severity, mean=cfg.data.mean, std=cfg.data.std) for kind in cfg[name].kinds
        ]
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
        the predictions of the clean images; and their metrics, with accuracy, error, NLL and ECE of the other sets,
        as in `accuracy_corrupted`, means over their kinds.
    """
    clean = classify(model, sets["clean"][0], accelerator, draws=draws)
    metrics = clean.metrics()
    for name, parts in sets.items():
        if name != "clean":
            found = [classify(model, part, accelerator, draws=draws).metrics() for part in parts]
            metrics |= {f"{key}_{name}": fmean(each[key] for each in found) for key in ON_OTHER_IMAGES}
    return clean, metrics
