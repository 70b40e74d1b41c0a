"""Concept labels that come in tables: animals of the zoo, a csv file, a folder of images beside one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from ibreg.layers.concept.specification import Concepts
from ibreg.runs.data import classification as data
from ibreg.runs.data.concept_rows import ConceptData, ConceptRequest, assemble
from ibreg.runs.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageFiles
from ibreg.runs.data.tables import Table, feature_values, read_table, standardized, target_classes


def zoo(request: ConceptRequest, *, test: float = 0.25) -> ConceptData:
    """Loads 101 animals of 7 types; their 15 yes-or-no attributes and the number of legs are inputs and concepts.

    Args:
        request: Where the set lies (`concepts/zoo.csv`) and how it is cut.
        test: Share of the rows for the test part.
    """
    file = request.folder / "concepts" / "zoo.csv"
    if not file.is_file():
        raise FileNotFoundError(
            f"zoo is not in {file.parent.absolute()}: put zoo.csv there (UCI's zoo.data with a header: animal, the "
            "attributes, type), or set data.root or IBREG_DATA to the folder that has concepts/; it is not downloaded"
        )
    table = read_table(file, "type", ["animal"])
    labels, _ = target_classes(table)
    class_names = ["mammal", "bird", "reptile", "fish", "amphibian", "insect", "invertebrate"]
    values = feature_values(table)
    legs = values[:, table.features.index("legs")]
    others = [column for column, name in enumerate(table.features) if name != "legs"]
    concepts = np.column_stack([values[:, others], legs == 0, legs == 2, legs == 4, legs > 4])
    described = [*(table.features[column] for column in others), {"name": "legs", "values": ["none", 2, 4, "more"]}]
    parts = request.stratified_split(labels, class_names, test)
    inputs = torch.tensor(standardized(values, parts[0]), dtype=torch.float32)
    return assemble("zoo", request, inputs.__getitem__, labels, class_names, concepts, described, parts)


def concept_csv(
    request: ConceptRequest,
    *,
    path: str | Path,
    target: str,
    concepts: str | Sequence[str | Mapping[str, Any]],
    drop: Sequence[str] = (),
    test: float = 0.2,
) -> ConceptData:
    """Loads a table with a header whose columns are features, concepts and the class; empty concept cells are missing.

    Args:
        request: Where the set lies and how it is cut.
        path: Comma-separated file, under the root or as it stands.
        target: Column of the class, integers or text.
        concepts: The concepts, a column for each: names, or entries such as `{name: size, kind: continuous}` and
            `{name: color, values: [red, blue]}`, or the path of a YAML file with such a list.
        drop: Columns to leave out.
        test: Share of the rows for the test part.

    Raises:
        ValueError: For columns that are not there, cells that are no numbers or none of a concept's values.
    """
    file = request.find(path, "table")
    entries = _entries(request, concepts)
    table = read_table(file, target, [*drop, *map(_column, entries)])
    labels, class_names = target_classes(table)
    found = _concept_values(table, entries)
    values = feature_values(table)
    parts = request.stratified_split(labels, class_names, test)
    inputs = torch.tensor(standardized(values, parts[0]), dtype=torch.float32)
    return assemble("concept_csv", request, inputs.__getitem__, labels, class_names, found, entries, parts)


def concept_image_folder(
    request: ConceptRequest,
    *,
    path: str | Path,
    concepts: str | Sequence[str | Mapping[str, Any]],
    table: str = "concepts.csv",
    image_size: int = 224,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> ConceptData:
    """Loads images from `path/train/<class>/` and `path/test/<class>/`, and their concepts from a table beside them.

    Args:
        request: Where the set lies and how it is cut.
        path: Folder with `train` and `test`, under the root or as it stands.
        concepts: As for `concept_csv`; empty cells are missing labels.
        table: Comma-separated file in the folder: a column `file` such as train/cat/1.jpg, and one for each concept.
        image_size: Side in pixels: the shorter side is resized to it and the center kept.
        mean: Subtracted from values in [0, 1], one number or one per channel.
        std: What they are divided by then.

    Raises:
        ValueError: For an image without a row in the table, and what `concept_csv` raises.
    """
    images = data.load(
        "image_folder", root=request.root, validation=0, path=path, image_size=image_size, mean=mean, std=std
    )
    folder = request.find(path, "image folder")
    files = [*images.train.inputs.paths, *images.test.inputs.paths]
    labels = torch.cat([images.train.targets, images.test.targets]).numpy()
    entries = _entries(request, concepts)
    # The column of the files cannot be missing, which is what a target is checked for.
    listed = read_table(_existing(folder / table), "file")
    unknown = [name for name in map(_column, entries) if name not in listed.cells]
    if unknown:
        raise ValueError(f"{folder / table} has no column {unknown[0]!r}: it has {list(listed.cells)}")
    rows = {Path(name).as_posix(): row for row, name in enumerate(listed.cells["file"])}
    wanted = [Path(file).relative_to(folder).as_posix() for file in files]
    if absent := [name for name in wanted if name not in rows]:
        raise ValueError(
            f"{folder / table} has no row for {len(absent)} images, such as {absent[0]}: give each one, with empty "
            "cells where its concepts are not known"
        )
    values = _concept_values(listed, entries)[[rows[name] for name in wanted]]

    def inputs(chosen: np.ndarray) -> ImageFiles:
        return ImageFiles([files[row] for row in chosen], image_size)

    count = len(images.train)
    training, validation, _ = request.stratified_split(labels[:count], images.class_names)
    parts = training, validation, np.arange(count, len(files))
    return assemble(
        "concept_image_folder",
        request,
        inputs,
        labels,
        images.class_names,
        values,
        entries,
        parts,
        normalization=images.normalization,
    )


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(
            f"no concept table at {file.absolute()}: it has a column file, such as train/cat/1.jpg, and one for each "
            "concept; data.table is its name"
        )
    return file


def _entries(request: ConceptRequest, concepts: Any) -> list[Any]:
    """Returns the list of concepts, from a YAML file where its path is given."""
    if isinstance(concepts, str):
        file = request.find(concepts, "concept file")
        Concepts.read(file)  # says what is wrong, with the file's name
        concepts = OmegaConf.to_container(OmegaConf.load(file))
    if not (isinstance(concepts, Sequence) and concepts):
        raise ValueError(f"concepts={concepts!r} is a list of columns such as [red, round], or the path of a YAML file")
    Concepts.of(list(concepts))  # what is wrong with them is said before the table is read
    return [dict(entry) if isinstance(entry, Mapping) else entry for entry in concepts]


def _column(entry: Any) -> str:
    return str(entry["name"] if isinstance(entry, Mapping) else entry)


def _concept_values(table: Table, entries: Sequence[Any]) -> np.ndarray:
    """Turns the columns of concepts into labels `(rows, concepts)`, one-hot where a concept has values."""
    found = []
    for entry in entries:
        cells = table.cells[_column(entry)]
        valid = [str(value) for value in entry.get("values", ())] if isinstance(entry, Mapping) else []
        for cell, line in zip(cells, table.lines, strict=True):
            if cell and not (cell in valid if valid else _is_number(cell)):
                expected = f"one of {valid}" if valid else "a number"
                raise ValueError(
                    f"column {_column(entry)!r}, line {line}: {cell} is not {expected}; an empty cell is no label"
                )
        known = np.array([bool(cell) for cell in cells])
        columns = (
            [[cell == value for cell in cells] for value in valid] if valid else [[float(cell or 0) for cell in cells]]
        )
        found += [np.where(known, np.array(column, dtype=float), np.nan) for column in columns]
    return np.stack(found, axis=1)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
