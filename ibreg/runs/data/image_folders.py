"""The images in folders, one folder per class, without what operating systems and programs put beside them."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ibreg.runs.data.image_files import image_endings, problem_of

SYSTEM_NAMES = {  # in lower case; beside names that begin with a dot, such as .ipynb_checkpoints and .DS_Store
    "__macosx",
    "__pycache__",
    "$recycle.bin",
    "@eadir",
    "desktop.ini",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
UNUSED_SPLITS = ("val", "valid", "validation", "dev")  # other names of splits that people have beside train and test
SHOWN = 5  # files that a warning names


@dataclass(frozen=True)
class ClassFolders:
    """The image files of some classes.

    Attributes:
        classes: names of the classes, sorted.
        paths: the files, class by class.
        labels: the class of each file, an index of `classes`.
    """

    classes: list[str]
    paths: list[str]
    labels: list[int]


def train_and_test(folder: Path, *, skip_broken: bool) -> tuple[ClassFolders, ClassFolders]:
    """Lists the images in `folder/train/<class>/` and `folder/test/<class>/`, see `class_folders`.

    Raises:
        FileNotFoundError: If there are no class folders in one of them.
        ValueError: If they have different classes, or a class has no image.
    """
    train, test = (class_folders(folder / split, skip_broken=skip_broken) for split in ("train", "test"))
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        raise ValueError(f"{folder} must have the same classes in train and test, but only one of them has {odd}")
    if unused := [name for name in UNUSED_SPLITS if (folder / name).is_dir()]:
        warnings.warn(
            f"{folder / unused[0]} is not used: data.validation holds out images of train for validation", stacklevel=4
        )
    return train, test


def class_folders(folder: Path, *, skip_broken: bool) -> ClassFolders:
    """Lists the images in `folder/<class>/` and the folders below, in the order of torchvision's `ImageFolder`.

    Hidden files and folders and those of operating systems are no images and no classes. Other files that are no images
    by their ending are left out with a warning.

    Args:
        folder: folder with one folder per class.
        skip_broken: whether files that cannot be decoded are left out, with a warning that names them.

    Raises:
        FileNotFoundError: If there are no folders in it.
        ValueError: If a class has no image.
    """
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)] if folder.is_dir() else []
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise FileNotFoundError(
            f"no class folders in {folder.absolute()}: images are expected in train/<class>/ and test/<class>/ under "
            f"{folder.parent.absolute()}; they are your own data, which data.download=true cannot fetch"
        )
    _warn_of([str(entry) for entry in entries if not entry.is_dir() and is_image(entry.name)], "in no class folder")
    files = [(path, label) for label, name in enumerate(classes) for path in _files_below(folder / name)]
    _warn_of([path for path, _ in files if not is_image(path)], "without the ending of an image")
    images = [(path, label) for path, label in files if is_image(path)]
    if skip_broken:
        problems = {path: problem for path, _ in images if (problem := _problem(path, os.lstat(path).st_mtime_ns))}
        _warn_of(list(problems.values()), "that cannot be read", separator="; ")
        images = [(path, label) for path, label in images if path not in problems]
    present = {label for _, label in images}
    if empty := [name for label, name in enumerate(classes) if label not in present]:
        raise ValueError(f"no image in {folder} for the classes {empty}: add some or remove these folders")
    return ClassFolders(classes, [path for path, _ in images], [label for _, label in images])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to an operating system or a program.

    Example:
        >>> is_hidden(".ipynb_checkpoints"), is_hidden("Thumbs.db"), is_hidden("cat")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image(name: str) -> bool:
    """Whether a file is an image by its ending.

    Example:
        >>> is_image("1.JPG"), is_image("notes.txt")
        (True, False)
    """
    return os.path.splitext(name)[1].lower() in image_endings()


@functools.cache  # the same folder is listed for every seed
def _problem(path: str, modified: int) -> str | None:
    """Returns what prevents a version of a file from being read."""
    return problem_of(path)


def _files_below(folder: Path) -> Iterator[str]:
    """Lists the files in a folder and its subfolders, links included, sorted by folder."""
    found, visited = [], {folder.resolve(), *folder.resolve().parents}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = [name for name in sorted(folders) if not is_hidden(name) and _first(Path(parent, name), visited)]
        found.append((parent, sorted(name for name in files if not is_hidden(name))))
    return (os.path.join(parent, name) for parent, files in sorted(found) for name in files)


def _first(folder: Path, visited: set[Path]) -> bool:
    """Whether a folder is neither visited before nor above the class: links may lead anywhere."""
    target = folder.resolve()
    if target in visited:
        return False
    visited.add(target)
    return True


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be listed ({error.strerror}): make the folder readable") from error


def _warn_of(files: Sequence[str], kind: str, separator: str = ", ") -> None:
    """Warns of files that are left out."""
    if files:
        shown = separator.join([*files[:SHOWN], *(["..."] if len(files) > SHOWN else [])])
        count = "1 file" if len(files) == 1 else f"{len(files):,} files"
        warnings.warn(f"left out {count} {kind}: {shown}", stacklevel=4)
