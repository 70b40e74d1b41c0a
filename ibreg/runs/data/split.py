"""Location of the files of a data set, and splits of its rows into training, validation and test rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from omegaconf import DictConfig
from sklearn.model_selection import train_test_split

from ibreg.runs.dispatch import choose, keyword_options

Loaded = TypeVar("Loaded")


def data_folder(root: str | Path | None) -> Path:
    """Returns the folder of the data: `root`, else the environment variable `IBREG_DATA`, else `data`.

    Example:
        >>> str(data_folder("pets"))
        'pets'
    """
    return Path(root or os.environ.get("IBREG_DATA") or "data").expanduser()


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options that all data sets have: the location of their files and the split of their rows.

    Args:
        root: folder of the data; None: the environment variable `IBREG_DATA`, else `data`.
        download: whether missing files are downloaded, where that is possible.
        validation: fraction of the training rows that is held out, in [0, 1); 0: none.
        split_seed: seed of every split, and of data that are generated.
        limit: number of training rows that are kept, stratified; 0: all.

    Raises:
        ValueError: If a value is out of range.
    """

    root: str | Path | None = None
    download: bool = False
    validation: float = 0.1
    split_seed: int = 0
    limit: int = 0

    def __post_init__(self):
        if not (isinstance(self.validation, int | float) and 0 <= self.validation < 1):
            raise ValueError(
                f"validation must be a fraction of at least 0 (none) and less than 1, got {self.validation!r}"
            )
        if not (isinstance(self.split_seed, int) and 0 <= self.split_seed < 2**32):
            raise ValueError(f"split_seed must be an integer from 0 to 2**32 - 1, got {self.split_seed!r}")
        if not (isinstance(self.limit, int) and self.limit >= 0):
            raise ValueError(f"limit must be a number of training rows, 0 for all, got {self.limit!r}")

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
        if test is not None:
            check_test_fraction(test)
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


def check_test_fraction(test: float) -> None:
    """Checks the fraction of test rows.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not (isinstance(test, int | float) and 0 < test < 1):
        raise ValueError(f"test must be a fraction of more than 0 and less than 1, got {test!r}")


def load_by_name(
    kind: str,
    name: str,
    sets: Mapping[str, Callable[..., Loaded]],
    request: type[Request],
    options: Mapping[str, Any],
) -> Loaded:
    """Loads a data set by name, from a request, which holds the options that all sets share, and its own options.

    Args:
        kind: kind of the sets, for messages.
        name: one of `sets`.
        sets: functions of a request and keyword-only options.
        request: class of the request.
        options: values by name.

    Raises:
        ValueError: If a name or option is unknown, or a value is out of range.
    """
    shared = keyword_options(request)
    own = {option: value for option, value in options.items() if option not in shared}
    function = choose(kind, name, sets, own, beside=f", all sets {list(shared)}")
    return function(request(**{option: value for option, value in options.items() if option in shared}), **own)


def load_splits(cfg: DictConfig, load: Callable[..., Loaded]) -> dict[int, Loaded]:
    """Loads the data for every seed: each with its own split, or all with the same one if `split_by_seed=false`.

    Args:
        cfg: the recipe's configuration: `seeds`, `split_by_seed` and the options of `data`.
        load: takes the options of `data`, `split_seed` among them; called once per split.
    """
    split_seeds = {seed: cfg.data.get("split_seed", 0) + (seed if cfg.split_by_seed else 0) for seed in cfg.seeds}
    loaded = {split_seed: load(**{**cfg.data, "split_seed": split_seed}) for split_seed in set(split_seeds.values())}
    return {seed: loaded[split_seed] for seed, split_seed in split_seeds.items()}
