"""The specification of concepts: names, kinds, groups and weights, in the order of the label columns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ibreg.layers.concept.variable import Variable

# Probabilities are clipped to [LEAST_PROBABILITY, 1 - LEAST_PROBABILITY] before they are turned into logits.
LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Concepts:
    """Specification of concepts: the meaning of the columns of labels and predictions, `(batch, concepts)`.

    A binary concept has labels in [0, 1]. A categorical concept is a group of neighboring columns, one per value, whose
    labels are one-hot (or soft) and whose predictions share a softmax. A continuous concept is a number. NaN stands for
    a missing label; in a categorical group all columns are missing together. Usually made by `Concepts.of` or
    `Concepts.read`.

    Attributes:
        variables: the entries that the specification was made of; each has one or several columns.
        names: name of each column, all different.
        kinds: "binary", "categorical" or "continuous", per column.
        groups: name of the group of each column; a concept without a group forms a group with its own name.
            Binary concepts may form groups too, such as the attributes of one part of a bird, on which an expert
            intervenes together.
        weights: weight of the loss of each column, at least 0; the same in all columns of a categorical group.

    Raises:
        ValueError: If there is no variable, columns are not consecutive, a name is used twice, a group has several
            kinds, a categorical group has a single column or columns that are not neighbors or of different weights, or
            a concept has the name of a group that it is not in.

    Example:
        >>> concepts = Concepts.of(["red", {"name": "digit", "values": [0, 1]}, {"name": "size", "kind": "continuous"}])
        >>> concepts.names
        ('red', 'digit=0', 'digit=1', 'size')
        >>> concepts.members
        {'red': (0,), 'digit': (1, 2), 'size': (3,)}
    """

    variables: tuple[Variable, ...]
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    kinds: tuple[str, ...] = field(init=False, repr=False, compare=False)
    groups: tuple[str, ...] = field(init=False, repr=False, compare=False)
    weights: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if not self.variables:
            raise ValueError("concepts must name at least one concept, got none")
        columns = [column for variable in self.variables for column in variable.columns]
        if columns != list(range(len(columns))):
            raise ValueError(f"the columns of the variables must be 0, 1, 2, ... in this order, got {columns}")
        fields = [(name, v.kind, v.group, v.weight) for v in self.variables for name in v.column_names]
        for attribute, values in zip(("names", "kinds", "groups", "weights"), zip(*fields, strict=True), strict=True):
            object.__setattr__(self, attribute, values)
        self._check_names()
        self._check_groups()

    def _check_names(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"concepts must have different names, {', '.join(map(repr, twice))} is used twice")
        groups = set(self.groups)
        for name, group in zip(self.names, self.groups, strict=True):
            if name != group and name in groups:
                raise ValueError(f"{name!r} is a concept of group {group!r} and the name of another group: rename one")

    def _check_groups(self) -> None:
        for group, columns in self.members.items():
            kinds = sorted({self.kinds[column] for column in columns})
            if "categorical" not in kinds:
                continue
            if len(kinds) > 1:
                raise ValueError(
                    f"group {group!r} has {' and '.join(kinds)} concepts: all its columns must be of one kind"
                )
            if len(columns) < 2 or columns[-1] - columns[0] != len(columns) - 1:
                raise ValueError(
                    f"a categorical group must have two or more adjacent columns, {group!r} has {list(columns)}"
                )
            if len({self.weights[column] for column in columns}) > 1:
                raise ValueError(
                    f"the columns of the categorical group {group!r} share one loss: give them the same weight"
                )

    @classmethod
    def of(cls, description: Description) -> Concepts:
        """Build a specification from a description.

        Args:
            description: a number of binary concepts; or a list with one entry per variable, a name (binary) or a
                mapping with `name` and, where they differ from the default, `kind` ("binary"), `group` (none), `weight`
                (1) and `values`: a list of values makes a categorical group with one column per value; or a `Concepts`,
                which is returned unchanged.

        Raises:
            ValueError: If it is something else or has an unknown field, and as for `Concepts` and `Variable`.

        Example:
            >>> Concepts.of(2).names
            ('concept_0', 'concept_1')
        """
        if isinstance(description, Concepts):
            return description
        if isinstance(description, int) and not isinstance(description, bool):
            if description < 1:
                raise ValueError(f"the number of concepts must be at least 1, got {description}")
            description = [f"concept_{column}" for column in range(description)]
        if isinstance(description, (str, Mapping)) or not isinstance(description, Sequence):
            raise ValueError(
                "concepts must be their number, a list of names or of mappings with name, kind, group, weight and "
                f"values, or an ibreg.Concepts, got {description!r}"
            )
        variables: list[Variable] = []
        for entry in description:
            variables.append(Variable.of(entry, sum(len(variable.columns) for variable in variables)))
        return cls(tuple(variables))

    @classmethod
    def read(cls, path: str | os.PathLike) -> Concepts:
        """Read a specification from a YAML file, the list that `of` takes. Requires PyYAML.

        Names and values are the text of the file: `yes`, `on`, `010` and `12:30` need no quotes.

        Args:
            path: path of the file. ::

                - red                                             # binary
                - {name: striped_wing, group: wing, weight: 2}
                - {name: digit, values: [zero, one, two]}         # three columns, one softmax
                - {name: size, kind: continuous}

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it does not hold such a list.
        """
        import yaml  # not a dependency of the core: the recipes' configurations bring it along

        with open(path, encoding="utf-8") as file:
            try:
                entries = yaml.load(file, yaml.BaseLoader)  # turns no text into booleans or numbers
                return cls.of([_with_number(entry) for entry in entries] if isinstance(entries, list) else entries)
            except (ValueError, yaml.YAMLError) as error:
                raise ValueError(f"{path} does not describe concepts: {error}") from error

    def entries(self) -> list[Any]:
        """Return the list from which `of` rebuilds this specification, in types of JSON and YAML."""
        return [variable.entry() for variable in self.variables]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def members(self) -> dict[str, tuple[int, ...]]:
        """The columns of each group, in the order in which the groups first appear."""
        members: dict[str, tuple[int, ...]] = {}
        for column, group in enumerate(self.groups):
            members[group] = (*members.get(group, ()), column)
        return members

    @property
    def units(self) -> dict[str, tuple[int, ...]]:
        """The columns that are predicted as one, by name: those of a categorical group, else a single column."""
        units: dict[str, tuple[int, ...]] = {}
        for group, columns in self.members.items():
            if self.kinds[columns[0]] == "categorical":
                units[group] = columns
            else:
                units |= {self.names[column]: (column,) for column in columns}
        return units

    @property
    def runs(self) -> list[tuple[str, slice]]:
        """Kind and slice of consecutive columns of one kind; each categorical group is a run of its own."""
        runs: list[tuple[str, slice]] = []
        for column, kind in enumerate(self.kinds):
            alone = kind == "categorical" and self.groups[column] != self.groups[column - 1]
            if runs and runs[-1][0] == kind and not alone:
                runs[-1] = (kind, slice(runs[-1][1].start, column + 1))
            else:
                runs.append((kind, slice(column, column + 1)))
        return runs

    def index(self, name: str) -> int:
        """Return the column of a concept.

        Raises:
            ValueError: If no concept has that name.
        """
        if name not in self.names:
            raise ValueError(f"there is no concept {name!r}: choose from {', '.join(self.names)}")
        return self.names.index(name)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities: sigmoid, softmax within a categorical group, a continuous value unchanged.

        Args:
            logits: `(..., concepts)`.

        Example:
            >>> Concepts.of(["red", {"name": "size", "kind": "continuous"}]).probabilities(torch.tensor([0.0, 3.0]))
            tensor([0.5000, 3.0000])
        """
        return _by_run(self, logits, {"binary": torch.sigmoid, "categorical": _softmax, "continuous": _identity})

    def logits(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities into logits, the inverse of `probabilities`.

        Args:
            probabilities: `(..., concepts)`; those of binary and categorical concepts are clipped to
                [`LEAST_PROBABILITY`, 1 - `LEAST_PROBABILITY`], since the logits of 0 and 1 are infinite.
        """
        return _by_run(self, probabilities, {"binary": _logit, "categorical": _log, "continuous": _identity})

    def mixed_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of the mean probability over samples, computed in log space, so that nothing saturates.

        Args:
            logits: `(samples, ..., concepts)`.

        Example:
            >>> concepts, logits = Concepts.of(2), torch.randn(9, 4, 2)
            >>> mean = concepts.probabilities(logits).mean(0)
            >>> torch.allclose(concepts.probabilities(concepts.mixed_logits(logits)), mean)
            True
        """
        return _by_run(self, logits, {"binary": _mixed_binary, "categorical": _mixed_categorical, "continuous": _mean})

    def decisions(self, probabilities: Tensor) -> Tensor:
        """Return 1 where a probability is above 0.5, or the largest of its categorical group, and 0 elsewhere.

        Args:
            probabilities: `(..., concepts)`; continuous values are returned unchanged.
        """
        return _by_run(self, probabilities, {"binary": _above_half, "categorical": _one_hot, "continuous": _identity})

    def validate(self, labels: Any) -> Tensor:
        """Check the labels of a data set and return them as a floating-point tensor.

        Args:
            labels: `(samples, concepts)`, NaN where a label is missing.

        Raises:
            ValueError: If a concept has no label at all, and as for `check_labels`.
        """
        labels = torch.as_tensor(labels)
        labels = labels if labels.is_floating_point() else labels.float()
        self.check_labels(labels)
        for name, missing in zip(self.names, labels.isnan().all(0).tolist(), strict=True):
            if missing:
                raise ValueError(f"all labels of concept {name!r} are missing: leave the concept out, or label some")
        return labels

    def check_labels(self, labels: Tensor, what: str = "labels") -> None:
        """Check the labels of a batch.

        Args:
            labels: `(samples, concepts)`, NaN where a label is missing.
            what: name of the labels in error messages.

        Raises:
            ValueError: If the shape does not fit, binary or categorical labels are outside [0, 1], labels are infinite,
                or those of a categorical group do not sum to 1 or are missing in part.
        """
        self.check_shape(labels, f"concept {what}")
        known = ~labels.isnan()
        for column, name in enumerate(self.names):
            values = labels[known[:, column], column]
            low, high = (-math.inf, math.inf) if self.kinds[column] == "continuous" else (0, 1)
            wrong = values[~((values >= low) & (values <= high) & values.isfinite())]
            if len(wrong):
                valid = "finite" if self.kinds[column] == "continuous" else "in [0, 1]"
                raise ValueError(
                    f"{what} of concept {name!r} must be {valid} or NaN (missing), got {wrong[0].item():g}"
                )
        for kind, run in self.runs:
            if kind == "categorical":
                group, rows = self.groups[run.start], known[:, run]
                if (rows.any(1) != rows.all(1)).any():
                    raise ValueError(
                        f"a sample has {what} for some columns of group {group!r} only: give all, or NaN for all"
                    )
                sums = labels[rows.all(1), run].sum(1)
                if ((sums - 1).abs() > 1e-2).any():
                    raise ValueError(f"{what} of the categorical group {group!r} must sum to 1 in each sample")

    def check_shape(self, values: Tensor, what: str) -> None:
        """Raise a ValueError if a tensor is not `(batch, concepts)`."""
        if values.dim() != 2 or values.shape[1] != len(self):
            raise ValueError(f"{what} must have shape (batch, {len(self)} concepts), got {tuple(values.shape)}")

    def positive_weights(self, labels: Any) -> list[float]:
        """Return negatives / positives of each binary concept, the `pos_weight` of a balanced loss; 1 for the others.

        Args:
            labels: `(samples, concepts)` of the training data; soft labels count in part. A concept without positive or
                without negative labels gets 1.
        """
        labels = self.validate(labels)
        positive, negative = labels.nansum(0), (1 - labels).nansum(0)
        balanced = (negative / positive).tolist()
        defined = ((positive > 0) & (negative > 0)).tolist()
        return [
            weight if kind == "binary" and both else 1.0
            for weight, kind, both in zip(balanced, self.kinds, defined, strict=True)
        ]


Description = int | Sequence[str | Mapping[str, Any]] | Concepts


def _with_number(entry: Any) -> Any:
    """Return an entry of text with its weight as a number, if it is one."""
    if not isinstance(entry, dict) or "weight" not in entry:
        return entry
    try:
        return entry | {"weight": float(entry["weight"])}
    except (TypeError, ValueError):
        return entry


def _by_run(concepts: Concepts, values: Tensor, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """Apply the function of its kind to each run of columns."""
    runs = [functions[kind](values[..., run]) for kind, run in concepts.runs]
    return runs[0] if len(runs) == 1 else torch.cat(runs, -1)


def _identity(values: Tensor) -> Tensor:
    return values


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _mixed_binary(logits: Tensor) -> Tensor:
    return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)


def _mixed_categorical(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).logsumexp(0) - math.log(logits.shape[0])


def _mean(values: Tensor) -> Tensor:
    return values.mean(0)


def _logit(probabilities: Tensor) -> Tensor:
    return probabilities.logit(LEAST_PROBABILITY)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).log()


def _above_half(probabilities: Tensor) -> Tensor:
    return (probabilities > 0.5).to(probabilities.dtype)


def _one_hot(probabilities: Tensor) -> Tensor:
    values = torch.arange(probabilities.shape[-1], device=probabilities.device)  # F.one_hot does not support vmap
    return (values == probabilities.argmax(-1, keepdim=True)).to(probabilities.dtype)
