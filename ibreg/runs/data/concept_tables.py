"""Concept labels in tables: animals of the zoo, a csv file, a folder of images with a csv file."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from ibreg.layers.concept.specification import Concepts
from ibreg.runs.config.section import Count
from ibreg.runs.data import classification as data
from ibreg.runs.data.concept_labels import concept_labels
from ibreg.runs.data.concept_rows import ConceptData, ConceptRequest, assemble
from ibreg.runs.data.image_files import ImageFiles
from ibreg.runs.data.images import IMAGENET_MEAN, IMAGENET_STD, PerChannel
from ibreg.runs.data.split import Fraction
from ibreg.runs.data.table_split import split_classes
from ibreg.runs.data.tables.encoding import encode
from ibreg.runs.data.tables.kinds import read_column
from ibreg.runs.data.tables.options import ColumnName, ColumnNames, Kinds, Marks
from ibreg.runs.data.tables.reading import MISSING_MARKS, Table, read_table
from ibreg.runs.data.tables.roles import Roles
from ibreg.runs.data.tables.standardization import standardized
from ibreg.runs.data.tables.targets import target_classes

# Entries are checked where they are read: `Concepts.of` says more of them.
ConceptList = Annotated[
    str | Annotated[Sequence[Any], Field(min_length=1)],
    Field(
        json_schema_extra={
            "valid": "a list of columns, such as [red, {name: size, kind: continuous}], or the path of a YAML file "
            "with such a list"
        }
    ),
]


def zoo(request: ConceptRequest, *, test: Fraction = 0.25) -> ConceptData:
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
    table = read_table(file)
    classes, _ = target_classes(table, "type")
    class_names = ["mammal", "bird", "reptile", "fish", "amphibian", "insect", "invertebrate"]
    attributes = Roles.of(table, "type", drop=["animal"]).features(table)
    values = np.column_stack([read_column(table, name, "number").values for name in attributes])
    legs = values[:, attributes.index("legs")]
    binary = [name for name in attributes if name != "legs"]
    others = [attributes.index(name) for name in binary]
    labels = np.column_stack([values[:, others], legs == 0, legs == 2, legs == 4, legs > 4])
    concepts = Concepts.of([*binary, {"name": "legs", "values": ["none", 2, 4, "more"]}])
    splits = request.stratified_split(classes, class_names, test)
    inputs = torch.tensor(standardized(values, splits[0]), dtype=torch.float32)
    animals = assemble(
        "zoo", request, concepts, inputs=inputs.__getitem__, classes=classes, class_names=class_names, labels=labels,
        splits=splits,
    )  # fmt: skip
    return replace(animals, input_names=tuple(attributes))


def concept_csv(
    request: ConceptRequest,
    *,
    path: str | Path,
    target: ColumnName,
    concepts: ConceptList,
    drop: ColumnNames = (),
    groups: ColumnName | None = None,
    order: ColumnName | None = None,
    kinds: Kinds | None = None,
    missing_marks: Marks = MISSING_MARKS,
    test: Fraction = 0.2,
) -> ConceptData:
    """Load a table with a header, csv or parquet, whose columns are features, concepts and the class.

    Features are encoded, and continuous concepts standardized, by statistics of the training rows.

    Args:
        request: options of all data sets.
        path: file, absolute, or relative to the data folder or to the current folder.
        target: column of the class, integers or strings.
        concepts: the concepts, one column each: names, or entries such as `{name: size, kind: continuous}` and
            `{name: color, values: [red, blue]}`, or the path of a YAML file with such a list. Missing cells are missing
            labels.
        drop: columns that are not used.
        groups: column of the groups, none of which is in two splits; None: rows are split at random.
        order: column of numbers or times that orders the rows: the latest are test rows; None: at random.
        kinds: what columns are read as where their cells do not decide it: number, boolean, text or date by column.
        missing_marks: cells that stand for a missing value, in any case.
        test: fraction of the rows that are test rows.

    Raises:
        ValueError: If a column does not exist, or a cell is not a number or one of the values of its concept.
    """
    file = request.find(path, "table")
    specification = _specification(request, concepts)
    table = read_table(file, missing_marks)
    variables = specification.variables
    columns = [variable.name for variable in variables]
    roles = Roles.of(table, target, drop=drop, groups=groups, order=order, kinds=kinds, concepts=columns)
    classes, class_names = target_classes(table, roles.target)
    labels = concept_labels(table, specification)
    splits = split_classes(request, table, roles, classes, class_names, test)
    others = {variable.name: (f"{variable.kind} concept", "") for variable in variables}
    encoded = encode(table, roles, splits[0], {roles.target: ("class", f"{len(class_names)} classes"), **others})
    inputs = torch.from_numpy(encoded.inputs)
    rows = assemble(
        "concept_csv", request, specification, inputs=inputs.__getitem__, classes=classes, class_names=class_names,
        labels=labels, splits=splits,
    )  # fmt: skip
    return replace(rows, input_names=encoded.names, columns=encoded.columns)


def concept_image_folder(
    request: ConceptRequest,
    *,
    path: str | Path,
    concepts: ConceptList,
    table: str = "concepts.csv",
    image_size: Count = 224,
    mean: PerChannel = IMAGENET_MEAN,
    std: PerChannel = IMAGENET_STD,
    broken: Literal["stop", "skip"] = "stop",
    workers: Annotated[int, Field(ge=0)] = 0,
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
    table = read_table(file)
    Roles.of(table, "file", concepts=[variable.name for variable in concepts.variables])
    rows = _rows_of_files(table)
    wanted = [_compared(str(image.relative_to(folder))) for image in files]
    if absent := [image for image in wanted if image not in rows]:
        raise ValueError(
            f"{file} has no row for {len(absent)} of {len(wanted)} images, such as {absent[0]}: add one for each, with "
            f"empty cells where concepts are unknown; its own files are such as {table.cells['file'][0]}"
        )
    if others := sorted(rows.keys() - set(wanted), key=rows.__getitem__):
        warnings.warn(
            f"{file} has {len(others)} rows of files that are no images in train/ or test/, such as {others[0]}",
            stacklevel=2,
        )
    return concept_labels(table, concepts)[[rows[image] for image in wanted]]


def _rows_of_files(table: Table) -> dict[str, int]:
    """Return the row of each file in the column `file`.

    Raises:
        ValueError: If a file has two rows.
    """
    rows: dict[str, int] = {}
    for row, cell in enumerate(table.cells["file"]):
        if (first := rows.setdefault(_compared(cell), row)) != row:
            raise ValueError(
                f"{table.file}: {table.place('file', row)}, must be a file of its own, got {cell}, which also is in "
                f"{table.place('file', first)}: leave one of the rows out"
            )
    return rows


def _compared(file: str) -> str:
    """Return a path for comparison: with slashes, without `./`, accents as one character (macOS writes two)."""
    return unicodedata.normalize("NFC", PurePosixPath(file.replace("\\", "/")).as_posix())


def _specification(request: ConceptRequest, concepts: str | Sequence[Any]) -> Concepts:
    """Return the specification of a list of concepts, or of the YAML file at a path."""
    if isinstance(concepts, str):
        return Concepts.read(request.find(concepts, "concept file"))
    # YAML reads a column called 5 as a number.
    return Concepts.of([str(entry) if type(entry) in (int, float) else entry for entry in concepts])
