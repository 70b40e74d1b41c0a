"""What concepts a model talks about: their names, kinds, groups and weights, in the order of the label columns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("binary", "categorical", "continuous")
FIELDS = ("name", "kind", "group", "weight", "values")

# Where a probability of 0 or 1 has to become a logit, it is taken as this far from it.
LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Concepts:
    """Concepts by column: what the labels `(batch, concepts)` and the predictions of a concept layer mean.

    A binary concept is a label in [0, 1]. A categorical variable is a group of neighboring columns, one for each of
    its values, that are one-hot (or soft) and share a softmax. A continuous concept is a number. NaN stands for a label
    that is missing; of a categorical group all columns are missing together. Usually made by `Concepts.of` or
    `Concepts.read`.

    Attributes:
        names: one per column, all different.
        kinds: "binary", "categorical" or "continuous", per column.
        groups: per column the name of the group that it belongs to; a concept without a group is one of its own, under
            its own name. Binary concepts may form groups too, such as the attributes of one part of a bird, which an
            expert corrects together.
        weights: per column, weight of its loss, at least 0; a categorical group has one.

    Raises:
        ValueError: lengths that differ, a name that stands twice, a kind that is none, a group of several kinds, a
            categorical group with one column or with others in between, a weight below 0, a concept with the name of a
            group that it is not in.

    Example:
        >>> concepts = Concepts.of(["red", {"name": "digit", "values": [0, 1]}, {"name": "size", "kind": "continuous"}])
        >>> concepts.names
        ('red', 'digit=0', 'digit=1', 'size')
        >>> concepts.members
        {'red': (0,), 'digit': (1, 2), 'size': (3,)}
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.names:
            raise ValueError("there is no concept: name at least one")
        if not len(self.names) == len(self.kinds) == len(self.groups) == len(self.weights):
            raise ValueError(
                f"{len(self.names)} names, {len(self.kinds)} kinds, {len(self.groups)} groups and {len(self.weights)} "
                "weights: give one of each for each concept"
            )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"concepts have different names, {', '.join(map(repr, twice))} stands twice")
        for name, kind, weight in zip(self.names, self.kinds, self.weights, strict=True):
            if kind not in KINDS:
                raise ValueError(f"the kind of concept {name!r} is one of {', '.join(map(repr, KINDS))}, got {kind!r}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of concept {name!r} is a finite number of at least 0, got {weight!r}")
        for name, group in zip(self.names, self.groups, strict=True):
            if name != group and name in self.members:
                raise ValueError(f"{name!r} is a concept of group {group!r} and the name of another group: rename one")
        for group, columns in self.members.items():
            kinds = sorted({self.kinds[column] for column in columns})
            if "categorical" not in kinds:
                continue
            if len(kinds) > 1:
                raise ValueError(f"group {group!r} has {' and '.join(kinds)} concepts: a softmax is over one kind")
            if len(columns) < 2 or columns[-1] - columns[0] != len(columns) - 1:
                raise ValueError(
                    f"the categorical group {group!r} has columns {list(columns)}: it needs two or more, side by side"
                )
            if len({self.weights[column] for column in columns}) > 1:
                raise ValueError(f"the categorical group {group!r} has one loss: give its columns one weight")

    @classmethod
    def of(cls, description: Description) -> Concepts:
        """Makes a specification of whatever describes one.

        Args:
            description: a number of binary concepts; or a list with one entry for each concept, a name (binary) or a
                mapping with `name` and, where they are not the default, `kind` ("binary"), `group` (none), `weight` (1)
                and `values`: a list of values makes a categorical group of one column for each, under this name; or a
                `Concepts`, which is returned.

        Raises:
            ValueError: something else, or a field that there is not; and what `Concepts` raises.

        Example:
            >>> Concepts.of(2).names
            ('concept_0', 'concept_1')
        """
        if isinstance(description, Concepts):
            return description
        if isinstance(description, int) and not isinstance(description, bool):
            if description < 1:
                raise ValueError(f"a number of concepts is at least 1, got {description}")
            description = [f"concept_{column}" for column in range(description)]
        if isinstance(description, (str, Mapping)) or not isinstance(description, Sequence):
            raise ValueError(
                "concepts are described by their number, by a list of names or of mappings with name, kind, group, "
                f"weight and values, or by an ibreg.Concepts; got {description!r}"
            )
        columns = [column for entry in description for column in _columns(entry)]
        return cls(*(tuple(field) for field in zip(*columns, strict=True))) if columns else cls((), (), (), ())

    @classmethod
    def read(cls, path: str | os.PathLike) -> Concepts:
        """Reads a specification from a YAML file: the list that `of` takes. It needs PyYAML.

        Args:
            path: of the file. ::

                - red                                             # binary
                - {name: striped_wing, group: wing, weight: 2}
                - {name: digit, values: [zero, one, two]}         # three columns, one softmax
                - {name: size, kind: continuous}

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a list.
        """
        import yaml  # not a dependency of the core: the recipes' configurations bring it along

        with open(path, encoding="utf-8") as file:
            try:
                return cls.of(yaml.safe_load(file))
            except (ValueError, yaml.YAMLError) as error:
                raise ValueError(f"{path} describes no concepts: {error}") from error

    def entries(self) -> list[Any]:
        """Returns the list of names and mappings that `of` makes this specification of again, fit for JSON and YAML."""
        entries = []
        for name, kind, group, weight in zip(self.names, self.kinds, self.groups, self.weights, strict=True):
            further = {"kind": kind} if kind != "binary" else {}
            further |= {"group": group} if group != name else {}
            further |= {"weight": weight} if weight != 1 else {}
            entries.append({"name": name, **further} if further else name)
        return entries

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
    def runs(self) -> list[tuple[str, slice]]:
        """The columns in runs that are treated alike: neighbors of one kind, each categorical group by itself."""
        runs: list[tuple[str, slice]] = []
        for column, kind in enumerate(self.kinds):
            alone = kind == "categorical" and self.groups[column] != self.groups[column - 1]
            if runs and runs[-1][0] == kind and not alone:
                runs[-1] = (kind, slice(runs[-1][1].start, column + 1))
            else:
                runs.append((kind, slice(column, column + 1)))
        return runs

    def index(self, name: str) -> int:
        """Returns the column of a concept.

        Raises:
            ValueError: no concept of that name.
        """
        if name not in self.names:
            raise ValueError(f"no concept is called {name!r}: there are {', '.join(self.names)}")
        return self.names.index(name)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns what logits stand for: sigmoid, softmax within a categorical group, the number itself.

        Args:
            logits: `(..., concepts)`.

        Example:
            >>> Concepts.of(["red", {"name": "size", "kind": "continuous"}]).probabilities(torch.tensor([0.0, 3.0]))
            tensor([0.5000, 3.0000])
        """
        return _by_run(self, logits, {"binary": torch.sigmoid, "categorical": _softmax, "continuous": _same})

    def logits(self, probabilities: Tensor) -> Tensor:
        """Returns logits that stand for these probabilities: the inverse of `probabilities`.

        Args:
            probabilities: `(..., concepts)`; those of binary and categorical concepts are kept `LEAST_PROBABILITY`
                away from 0 and 1, whose logits are infinite.
        """
        return _by_run(self, probabilities, {"binary": _logit, "categorical": _log, "continuous": _same})

    def mixed_logits(self, logits: Tensor) -> Tensor:
        """Returns logits of the mean probability over draws, without leaving log space: no draw saturates it.

        Args:
            logits: `(draws, ..., concepts)`.

        Example:
            >>> concepts, draws = Concepts.of(2), torch.randn(9, 4, 2)
            >>> mean = concepts.probabilities(draws).mean(0)
            >>> torch.allclose(concepts.probabilities(concepts.mixed_logits(draws)), mean)
            True
        """
        return _by_run(self, logits, {"binary": _mixed_binary, "categorical": _mixed_categorical, "continuous": _mean})

    def decisions(self, probabilities: Tensor) -> Tensor:
        """Returns probabilities decided: 1 where they are above 0.5, in a categorical group for the largest; else 0.

        Args:
            probabilities: `(..., concepts)`; continuous ones stay.
        """
        return _by_run(self, probabilities, {"binary": _above_half, "categorical": _one_hot, "continuous": _same})

    def validate(self, labels: Any) -> Tensor:
        """Checks the labels of a data set and returns them as a tensor of floats.

        Args:
            labels: `(samples, concepts)`, NaN where a label is missing.

        Raises:
            ValueError: what `check_labels` raises, and a concept without any label.
        """
        labels = torch.as_tensor(labels)
        labels = labels if labels.is_floating_point() else labels.float()
        self.check_labels(labels)
        for name, missing in zip(self.names, labels.isnan().all(0).tolist(), strict=True):
            if missing:
                raise ValueError(f"all labels of concept {name!r} are missing: leave the concept out, or label some")
        return labels

    def check_labels(self, labels: Tensor, what: str = "labels") -> None:
        """Checks the labels of some samples.

        Args:
            labels: `(samples, concepts)`, NaN where a label is missing.
            what: how errors call them.

        Raises:
            ValueError: another shape, binary or categorical labels outside [0, 1], rows of a categorical group that do
                not sum to 1 or that are missing in part, infinite labels.
        """
        self.check_shape(labels, f"concept {what}")
        known = ~labels.isnan()
        for column, name in enumerate(self.names):
            values = labels[known[:, column], column]
            low, high = (-math.inf, math.inf) if self.kinds[column] == "continuous" else (0, 1)
            wrong = values[~((values >= low) & (values <= high) & values.isfinite())]
            if len(wrong):
                expected = "finite" if self.kinds[column] == "continuous" else "in [0, 1]"
                raise ValueError(f"{what} of concept {name!r} are {expected} or NaN (missing), got {wrong[0].item():g}")
        for kind, run in self.runs:
            if kind == "categorical":
                group, rows = self.groups[run.start], known[:, run]
                if (rows.any(1) != rows.all(1)).any():
                    raise ValueError(f"a sample has {what} for a part of group {group!r}: give all, or NaN for all")
                sums = labels[rows.all(1), run].sum(1)
                if ((sums - 1).abs() > 1e-2).any():
                    raise ValueError(f"the {what} of the categorical group {group!r} sum to 1 in each sample")

    def check_shape(self, values: Tensor, what: str) -> None:
        """Raises a ValueError where a tensor is not `(batch, concepts)`."""
        if values.dim() != 2 or values.shape[1] != len(self):
            raise ValueError(f"{what} have shape (batch, {len(self)} concepts), got {tuple(values.shape)}")

    def positive_weights(self, labels: Any) -> list[float]:
        """Returns negatives / positives of each binary concept, 1 for the others: the `pos_weight` of balanced losses.

        Args:
            labels: `(samples, concepts)` of the training data; soft ones count in part. A concept that is never or
                always there gets 1.
        """
        labels = self.validate(labels)
        positive, negative = labels.nansum(0), (1 - labels).nansum(0)
        balanced = (negative / positive).tolist()
        counted = ((positive > 0) & (negative > 0)).tolist()
        return [
            weight if kind == "binary" and both else 1.0
            for weight, kind, both in zip(balanced, self.kinds, counted, strict=True)
        ]


Description = int | Sequence[str | Mapping[str, Any]] | Concepts


def _columns(entry: Any) -> list[tuple[str, str, str, float]]:
    """Returns name, kind, group and weight of the columns that one entry of a description makes."""
    if isinstance(entry, str):
        return [(entry, "binary", entry, 1.0)]
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise ValueError(f"a concept is a name or a mapping with a name, got {entry!r}")
    unknown = [str(key) for key in entry if key not in FIELDS]
    if unknown:
        raise ValueError(
            f"concept {entry['name']!r} has no field {', '.join(map(repr, unknown))}: choose from {', '.join(FIELDS)}"
        )
    name, weight = str(entry["name"]), entry.get("weight", 1.0)
    if not isinstance(weight, Real) or isinstance(weight, bool):
        raise ValueError(f"the weight of concept {name!r} is a number of at least 0, got {weight!r}")
    weight = float(weight)
    if "values" not in entry:
        return [(name, entry.get("kind", "binary"), str(entry.get("group", name)), weight)]
    if entry.get("kind", "categorical") != "categorical" or "group" in entry:
        raise ValueError(f"concept {name!r} has values: it is categorical, and its columns are a group of their own")
    values = entry["values"]
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < 2:
        raise ValueError(f"the values of concept {name!r} are a list of two or more, got {values!r}")
    return [(f"{name}={value}", "categorical", name, weight) for value in values]


def _by_run(concepts: Concepts, values: Tensor, functions: Mapping[str, Any]) -> Tensor:
    runs = [functions[kind](values[..., run]) for kind, run in concepts.runs]
    return runs[0] if len(runs) == 1 else torch.cat(runs, -1)


def _same(values: Tensor) -> Tensor:
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
    values = torch.arange(probabilities.shape[-1], device=probabilities.device)  # F.one_hot knows no vmap
    return (values == probabilities.argmax(-1, keepdim=True)).to(probabilities.dtype)
