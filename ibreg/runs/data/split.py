"""Where the files of a data set are, and how its rows are split into training, validation and test rows."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from omegaconf import DictConfig
from sklearn.model_selection import train_test_split

Loaded = TypeVar("Loaded")


def data_folder(root: str | Path | None) -> Path:
    """Returns the folder of the data: as given, else that of the environment variable `IBREG_DATA`, else `data`.

    Example:
        >>> str(data_folder("here"))
        'here'
    """
    return Path(root or os.environ.get("IBREG_DATA") or "data").expanduser()


@dataclass(frozen=True)
class Request:
    """What is asked of every set: where it lies and how it is cut; the arguments are those of `load`."""

    root: Path
    download: bool
    validation: float
    split_seed: int
    limit: int

    def __post_init__(self):
        if not (isinstance(self.validation, int | float) and 0 <= self.validation < 1):
            raise ValueError(f"validation={self.validation!r} is a share: at least 0 (none) and less than 1")
        if not (isinstance(self.split_seed, int) and 0 <= self.split_seed < 2**32):
            raise ValueError(f"split_seed={self.split_seed!r} is an integer from 0 to 2**32 - 1")
        if not (isinstance(self.limit, int) and self.limit >= 0):
            raise ValueError(f"limit={self.limit!r} is a number of training rows: 0 (all) or more")

    def find(self, path: str | Path, what: str) -> Path:
        """Finds a user's own file or folder, under the root or as the path stands."""
        places = [self.root / Path(path).expanduser(), Path(path).expanduser()]
        for place in places:
            if place.exists():
                return place
        looked = " nor ".join(str(place.absolute()) for place in dict.fromkeys(places))
        raise FileNotFoundError(
            f"no {what} at {looked}: set data.path to it (and data.root or IBREG_DATA to the folder that data.path "
            "starts from); it is your own data, which data.download=true cannot fetch"
        )

    def stratified_split(
        self, labels: np.ndarray, class_names: Sequence[str], test: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cuts rows into training, validation and test rows, each class in the same proportion in all of them.

        Args:
            labels: `(rows,)`, classes from 0.
            class_names: One name per class, for messages.
            test: Share of the rows for the test part; None for a set that has one of its own.
        """
        if not (test is None or (isinstance(test, int | float) and 0 < test < 1)):
            raise ValueError(f"test={test!r} is a share: more than 0 and less than 1")
        if len(class_names) < 2:
            raise ValueError(f"the only class is {class_names[0]!r}: classification needs two or more")
        train, held_out = self._hold_out(np.arange(len(labels)), test, "test", labels, class_names)
        train, validation = self._hold_out(train, self.validation, "validation", labels, class_names)
        if 0 < self.limit < len(train):
            train = self._keep(train, labels, class_names)
        return train, validation, held_out

    def _hold_out(self, rows, share, part, labels, class_names) -> tuple[np.ndarray, np.ndarray]:
        kept, held_out = rows, rows[:0]
        if not share:
            return kept, held_out
        with suppress(ValueError):  # scikit-learn refuses a class of one row, and a side with fewer rows than classes
            sides = train_test_split(rows, test_size=share, stratify=labels[rows], random_state=self.split_seed)
            kept, held_out = map(np.asarray, sides)
        if any(len(np.unique(labels[side])) < len(class_names) for side in (kept, held_out)):
            counts = np.bincount(labels[rows], minlength=len(class_names))
            raise ValueError(
                f"{part}={share} of {len(rows)} rows cannot have every class on both sides: class "
                f"{class_names[counts.argmin()]!r} has {counts.min()} of them. Set data.{part} nearer to 0.5, give the "
                "class more rows, merge it with another or leave it out; data.validation=0 holds out no validation rows"
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


def load_splits(cfg: DictConfig, load: Callable[..., Loaded]) -> dict[int, Loaded]:
    """Loads the data for every seed: each with its own split, or all with the same one if `split_by_seed=false`.

    Args:
        cfg: the recipe's configuration: `seeds`, `split_by_seed` and the options of `data`.
        load: takes the options of `data`, `split_seed` among them; called once per split.
    """
    split_seeds = {seed: cfg.data.get("split_seed", 0) + (seed if cfg.split_by_seed else 0) for seed in cfg.seeds}
    loaded = {split_seed: load(**{**cfg.data, "split_seed": split_seed}) for split_seed in set(split_seeds.values())}
    return {seed: loaded[split_seed] for seed, split_seed in split_seeds.items()}
