"""Concept labels in tables: animals of the zoo, a csv file, a folder of images with a csv file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ibreg.layers.concept.specification import Concepts
from ibreg.layers.concept.variable import Variable
from ibreg.runs.data import classification as data
from ibreg.runs.data.concept_rows import ConceptData, ConceptRequest, assemble
from ibreg.runs.data.image_files import ImageFiles
from ibreg.runs.data.images import IMAGENET_MEAN, IMAGENET_STD
from ibreg.runs.data.tables import Table, feature_values, read_table, standardized, target_classes


def zoo(request: ConceptRequest, *, test: float = 0.25) -> ConceptData:
    """Load 101 animals of 7 types, whose inputs and concepts are 15 binary attributes and the number of legs.

    Args:
        request: options of all data sets; the file is `concepts/zoo.csv`.
        test: fraction of the rows that are test rows.
    """
    file = request.folder / "concepts" / "zoo.csv"
    if not file.is_file():
        raise FileNotFoundError(
            f"zoo is not in {file.parent.absolute()}: put zoo.csv there (UCI's zoo.data with a header: animal, the "
            "attributes, type), or set data.root or IBREG_DATA to the folder that has concepts/; it is not downloaded"
        )
    table = read_table(file, "type", ["animal"])
    classes, _ = target_classes(table)
    class_names = ["mammal", "bird", "reptile", "fish", "amphibian", "insect", "invertebrate"]
    values = feature_values(table)
    legs = values[:, table.features.index("legs")]
    others = [column for column, name in enumerate(table.features) if name != "legs"]
    labels = np.column_stack([values[:, others], legs == 0, legs == 2, legs == 4, legs > 4])
    names = [table.features[column] for column in others]
    concepts = Concepts.of([*names, {"name": "legs", "values": ["none", 2, 4, "more"]}])
    splits = request.stratified_split(classes, class_names, test)
    inputs = torch.tensor(standardized(values, splits[0]), dtype=torch.float32)
    return assemble(
        "zoo", request, concepts, inputs=inputs.__getitem__, classes=classes, class_names=class_names, labels=labels,
        splits=splits,
    )  # fmt: skip


def concept_csv(
    request: ConceptRequest,
    *,
    path: str | Path,
    target: str,
    concepts: str | Sequence[str | Mapping[str, Any]],
    drop: Sequence[str] = (),
    test: float = 0.2,
) -> ConceptData:
    """Load a table with a header whose columns are features, concepts and the class; empty concept cells are missing.

    Args:
        request: options of all data sets.
        path: comma-separated file, absolute, or relative to the data folder or to the current folder.
        target: column of the class, integers or strings.
        concepts: the concepts, one column each: names, or entries such as `{name: size, kind: continuous}` and
            `{name: color, values: [red, blue]}`, or the path of a YAML file with such a list.
        drop: columns that are not used.
        test: fraction of the rows that are test rows.

    Raises:
        ValueError: If a column does not exist, or a cell is not a number or one of the values of its concept.
    """
    file = request.find(path, "table")
    specification = _specification(request, concepts)
    table = read_table(file, target, [*drop, *(variable.name for variable in specification.variables)])
    classes, class_names = target_classes(table)
    labels = _concept_labels(table, specification)
    values = feature_values(table)
    splits = request.stratified_split(classes, class_names, test)
    inputs = torch.tensor(standardized(values, splits[0]), dtype=torch.float32)
    return assemble(
        "concept_csv", request, specification, inputs=inputs.__getitem__, classes=classes, class_names=class_names,
        labels=labels, splits=splits,
    )  # fmt: skip


def concept_image_folder(
    request: ConceptRequest,
    *,
    path: str | Path,
    concepts: str | Sequence[str | Mapping[str, Any]],
    table: str = "concepts.csv",
    image_size: int = 224,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
    broken: str = "stop",
    workers: int = 0,
) -> ConceptData:
    """Load images from `path/train/<class>/` and `path/test/<class>/`, and their concepts from a table in `path`.

    Args:
        request: options of all data sets.
        path: folder with `train` and `test`, absolute, or relative to the data folder or to the current folder.
        concepts: as for `concept_csv`; empty cells are missing labels.
        table: comma-separated file in the folder: a column `file` such as train/cat/1.jpg, and one per concept.
        image_size: side in pixels, to which the square at the center of an image is resized.
        mean: mean by which the network normalizes values in [0, 1], one number or one per channel.
        std: standard deviation by which it does.
        broken: "stop" raises at a broken file when it is read; "skip" decodes all files once and drops broken ones.
        workers: number of processes that decode images while the model trains; 0: the main process.

    Raises:
        ValueError: If an image has no row in the table, and as for `concept_csv`.
    """
    images = data.load(
        "image_folder", root=request.root, validation=0, path=path, image_size=image_size, mean=mean, std=std,
        broken=broken, workers=workers,
    )  # fmt: skip
    files = [*images.train.inputs.paths, *images.test.inputs.paths]
    classes = torch.cat([images.train.targets, images.test.targets]).numpy()
    specification = _specification(request, concepts)
    folder = request.find(path, "image folder")
    labels = _labels_of_files(folder, table, specification, [Path(file) for file in files])

    def inputs(rows: np.ndarray) -> ImageFiles:
        return ImageFiles([files[row] for row in rows], image_size, workers)

    count = len(images.train)
    train, validation, _ = request.stratified_split(classes[:count], images.class_names)
    return assemble(
        "concept_image_folder", request, specification, inputs=inputs, classes=classes, class_names=images.class_names,
        labels=labels, splits=(train, validation, np.arange(count, len(files))), normalization=images.normalization,
    )  # fmt: skip


def _labels_of_files(folder: Path, name: str, concepts: Concepts, files: Sequence[Path]) -> np.ndarray:
    """Return the concept labels `(files, concepts)` of image files from the table in their folder."""
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(
            f"no concept table at {file.absolute()}: a table with a column file, such as train/cat/1.jpg, and one for "
            "each concept is expected; data.table sets its name"
        )
    # The column of the files cannot have missing cells, as those of a target.
    table = read_table(file, "file")
    unknown = [variable.name for variable in concepts.variables if variable.name not in table.cells]
    if unknown:
        raise ValueError(f"{file} has no column {unknown[0]!r}: it has {list(table.cells)}")
    rows = {Path(cell).as_posix(): row for row, cell in enumerate(table.cells["file"])}
    wanted = [image.relative_to(folder).as_posix() for image in files]
    if absent := [image for image in wanted if image not in rows]:
        raise ValueError(
            f"{file} has no row for {len(absent)} images, such as {absent[0]}: add one for each, with empty cells "
            "where concepts are unknown"
        )
    return _concept_labels(table, concepts)[[rows[image] for image in wanted]]


def _specification(request: ConceptRequest, concepts: Any) -> Concepts:
    """Return the specification of a list of concepts, or of the YAML file at a path."""
    if isinstance(concepts, str):
        return Concepts.read(request.find(concepts, "concept file"))
    if not (isinstance(concepts, Sequence) and concepts):
        raise ValueError(
            f"concepts must be a list of columns such as [red, round], or the path of a YAML file, got {concepts!r}"
        )
    return Concepts.of(cast(Sequence[Any], concepts))


def _concept_labels(table: Table, concepts: Concepts) -> np.ndarray:
    """Turn the columns of concepts into labels `(rows, concepts)`, one-hot where a variable has values."""
    labels = []
    for variable in concepts.variables:
        cells = table.cells[variable.name]
        _check_cells(variable, cells, table.lines)
        known = np.array([bool(cell) for cell in cells])
        if variable.values:
            columns = [[float(cell == value) for cell in cells] for value in variable.values]
        else:
            columns = [[float(cell or 0) for cell in cells]]
        labels += [np.where(known, np.array(column), np.nan) for column in columns]
    return np.stack(labels, axis=1)


def _check_cells(variable: Variable, cells: Sequence[str], lines: Sequence[int]) -> None:
    """Raise a ValueError if a cell is not a number, or not one of the values of its variable; empty ones are valid."""
    for cell, line in zip(cells, lines, strict=True):
        if cell and not (cell in variable.values if variable.values else _is_number(cell)):
            valid = f"one of {list(variable.values)}" if variable.values else "a number"
            raise ValueError(f"column {variable.name!r}, line {line}, must be {valid} or empty (no label), got {cell}")


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
