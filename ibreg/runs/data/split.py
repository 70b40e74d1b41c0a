"""Location of the files of a data set, and splits of its rows into training, validation and test rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field
from sklearn.model_selection import train_test_split

from ibreg.runs.config.section import Section, Share, read
from ibreg.runs.dispatch import find, keyword_options, name_in, options_of

Loaded = TypeVar("Loaded")
AnyRequest = TypeVar("AnyRequest", bound="Request")

Fraction = Annotated[float, Field(gt=0, lt=1)]
SplitSeed = Annotated[int, Field(ge=0, lt=2**32)]
Limit = Annotated[int, Field(ge=0)]


def data_folder(root: str | Path | None) -> Path:
    """Returns the folder of the data: `root`, else the environment variable `IBREG_DATA`, else `data`.

    Example:
        >>> str(data_folder("pets"))
        'pets'
    """
    return Path(root or os.environ.get("IBREG_DATA") or "data").expanduser()


def missing_files(name: str, folder: Path, files: str) -> FileNotFoundError:
    """Words the error on a data set whose files are missing."""
    return FileNotFoundError(
        f"{name} is not in {folder.absolute()}, or is damaged: put {files} there, set data.root or IBREG_DATA to the "
        f"folder that has {folder.name}/, or fetch it with data.download=true"
    )


class Request(Section):
    """Options that all data sets have: the location of their files and the split of their rows.

    Attributes:
        name: name of the data set.
        root: folder of the data; None: the environment variable `IBREG_DATA`, else `data`.
        download: whether missing files are downloaded, where that is possible.
        validation: fraction of the training rows that is held out, in [0, 1); 0: none.
        split_seed: seed of every split, and of data that are generated.
        limit: number of training rows that are kept, stratified; 0: all.
    """

    name: str = ""
    root: str | Path | None = None
    download: bool = False
    validation: Share = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = 0

    @property
    def folder(self) -> Path:
        """The folder of the data."""
        return data_folder(self.root)

    def find(self, path: str | Path, kind: str) -> Path:
        """Finds a user's own file or folder, relative to the folder of the data or to the current folder.

        Args:
            path: path of the file or folder.
            kind: kind of file, for the message.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        candidates = [self.folder / Path(path).expanduser(), Path(path).expanduser()]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        tried = " nor ".join(str(candidate.absolute()) for candidate in dict.fromkeys(candidates))
        raise FileNotFoundError(
            f"no {kind} at {tried}: set data.path to it (and data.root or IBREG_DATA to the folder that data.path "
            "starts from); it is your own data, which data.download=true cannot fetch"
        )

    def stratified_split(
        self, labels: np.ndarray, class_names: Sequence[str], test: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Splits rows into training, validation and test rows, with each class in the same proportion in all of them.

        Args:
            labels: `(rows,)`, classes from 0.
            class_names: one name per class, for messages.
            test: fraction of the rows that are test rows; None: the data set has its own.

        Returns:
            The indices of the training, validation and test rows.

        Raises:
            ValueError: If a fraction is out of range, there is one class alone, or a class is too rare for all splits.
        """
        if len(class_names) < 2:
            raise ValueError(f"the only class is {class_names[0]!r}: classification needs two or more")
        train, held_out = self._hold_out(np.arange(len(labels)), test, "test", labels, class_names)
        train, validation = self._hold_out(train, self.validation, "validation", labels, class_names)
        if 0 < self.limit < len(train):
            train = self._keep(train, labels, class_names)
        return train, validation, held_out

    def _hold_out(self, rows, fraction, split, labels, class_names) -> tuple[np.ndarray, np.ndarray]:
        kept, held_out = rows, rows[:0]
        if not fraction:
            return kept, held_out
        with suppress(ValueError):  # scikit-learn refuses a class of one row, and a side with fewer rows than classes
            sides = train_test_split(rows, test_size=fraction, stratify=labels[rows], random_state=self.split_seed)
            kept, held_out = map(np.asarray, sides)
        if any(len(np.unique(labels[side])) < len(class_names) for side in (kept, held_out)):
            counts = np.bincount(labels[rows], minlength=len(class_names))
            raise ValueError(
                f"{split}={fraction} of {len(rows)} rows cannot have every class in both splits: class "
                f"{class_names[counts.argmin()]!r} has {counts.min()} of them. Set data.{split} closer to 0.5, give "
                "the class more rows, merge it with another or leave it out; data.validation=0 holds out no validation "
                "rows"
            )
        return kept, held_out

    def _keep(self, rows, labels, class_names) -> np.ndarray:
        classes = len(class_names)
        if not classes <= self.limit <= len(rows) - classes:
            raise ValueError(
                f"limit={self.limit} cannot be stratified: it is 0 (all {len(rows)} training rows) or from {classes}, "
                f"one per class, to {len(rows) - classes}"
            )
        sides = train_test_split(rows, train_size=self.limit, stratify=labels[rows], random_state=self.split_seed)
        kept = np.asarray(sides[0])
        if missing := set(range(classes)) - set(labels[kept]):
            raise ValueError(
                f"limit={self.limit} leaves no training row of class {class_names[min(missing)]!r}: raise it"
            )
        return kept


def request_of(
    kind: str,
    sets: Mapping[str, Callable[..., Any]],
    request: type[AnyRequest],
    options: Mapping[str, Any],
    section: str = "data",
) -> AnyRequest:
    """Checks the options of a data set: those that all sets share, and the keyword-only arguments of its own function.

    Args:
        kind: kind of the sets, for messages.
        sets: functions by name, of a request and keyword-only options.
        request: class of the request, which declares the shared options.
        options: values by name, with the `name` of the set.
        section: key of the options in a configuration, for messages.

    Raises:
        ValueError: If a name or option is unknown, or a value is not valid.
    """
    function = find(kind, name_in(options, sets, section), sets, section)
    return read(options_of(function, request), options, section)


def load_request(sets: Mapping[str, Callable[..., Loaded]], request: Request) -> Loaded:
    """Loads a data set from its checked options."""
    function = sets[request.name]
    return function(request, **{option: getattr(request, option) for option in keyword_options(function)})


def load_splits(
    request: Request, seeds: Sequence[int], load: Callable[..., Loaded], *, split_by_seed: bool
) -> dict[int, Loaded]:
    """Loads the data for every seed: each with its own split, or all with the same one.

    Args:
        request: the options of the data set.
        seeds: seeds of the training runs.
        load: takes the options, `split_seed` among them; called once per split.
        split_by_seed: whether seed s splits with `split_seed` + s.
    """
    split_seeds = {seed: request.split_seed + (seed if split_by_seed else 0) for seed in seeds}
    loaded = {
        split_seed: load(**{**dict(request), "split_seed": split_seed}) for split_seed in set(split_seeds.values())
    }
    return {seed: loaded[split_seed] for seed, split_seed in split_seeds.items()}
