r"""Sums over all pairs of a batch, of one or two kernels that are centered, without a matrix of all pairs.

HSIC, CKA and the Cauchy-Schwarz mutual information are functions of the same few numbers: of the kernels K and Q of two
variables, the row means, and :math:`\sum_{ij} K^c_{ij} Q^c_{ij}` with :math:`K^c` doubly centered. Two passes over
square tiles find them: `gram` the row means, `pair_sums` the centered sums. Centering is a projection, so that the
derivative of the sum with respect to K is :math:`Q^c`, and the backward is a third pass.

Wide kernels are close to 1 everywhere. Hence constants are left out from the start (tiles hold k - 1, by expm1), the
centering comes before the products, and totals are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ibreg.distributed import gather_rows, over_ranks
from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.kernels import Kernel, diagonal_of, kernel_named
from ibreg.functional.kernel.rows import check_block_size
from ibreg.precision import wide_dtype

TILE = 512  # rows and columns of a tile: a few of them stay in a core's cache
KEPT = 2048  # up to so many samples the tiles are kept from pass to pass: 8 MB a variable


@dataclass(frozen=True)
class Walk:
    """Which pairs this process visits: those of its own rows with all rows, tile by tile.

    Attributes:
        lengths: number of rows of each rank; of this process alone but with `gather`.
        rank: this one.
        tile: rows and columns of a tile.
    """

    lengths: tuple[int, ...]
    rank: int
    tile: int

    @property
    def total(self) -> int:
        """Number of samples, over all ranks."""
        return sum(self.lengths)

    @property
    def start(self) -> int:
        """Where this rank's rows begin."""
        return sum(self.lengths[: self.rank])

    @property
    def stop(self) -> int:
        """Where this rank's rows end."""
        return self.start + self.lengths[self.rank]

    @property
    def ranks(self) -> int:
        """How many processes share the rows."""
        return len(self.lengths)

    def visits(self) -> Iterator[tuple[slice, slice, bool]]:
        """Yields rows, columns, and whether the tile also stands for its mirror image across the diagonal."""
        alone = self.ranks == 1
        for row in range(self.start, self.stop, self.tile):
            rows = slice(row, min(row + self.tile, self.stop))
            for column in range(row if alone else 0, self.total, self.tile):
                yield rows, slice(column, min(column + self.tile, self.total)), alone and column > row


class Gram(NamedTuple):
    """A variable and what one pass over its pairs found; `hsic` takes it instead of the variable, any number of times.

    Attributes:
        values: `(own rows, dim)`, through which the gradient goes; labels `(own rows, 1)`.
        points: `(total, dim)`, without gradient: values of all ranks, around 0 and divided by the bandwidth.
        scale: 0-dim, derivative of a point by its value.
        means: `(total,)` float64, row means of the Gram matrix less a constant.
        diagonal: `(total,)` float64, its diagonal less the same constant.
        tiles: the tiles, where they are kept.
        kernel: name of the kernel.
        walk: the pairs.
    """

    values: Tensor
    points: Tensor
    scale: Tensor
    means: Tensor
    diagonal: Tensor
    tiles: tuple[Tensor, ...]
    kernel: str
    walk: Walk


def gram(
    x: Tensor,
    *,
    kernel: str = "gaussian",
    bandwidth: Bandwidth = "median",
    block_size: int | None = None,
    gather: bool = False,
    name: str = "x",
) -> Gram:
    """Prepares a variable for `hsic` or `cs_qmi`: the first of the two passes over its pairs.

    Args:
        x: `(batch, ...)`; integer labels `(batch,)` for the delta kernel.
        kernel: `gaussian`, `inverse_multiquadric`, `linear` or `delta`.
        bandwidth: see `bandwidth_of`; the median is taken of at most 1,024 rows. Linear and delta kernels have none.
        block_size: rows and columns that are visited at once; None: chosen, and the tiles of small batches are kept.
        gather: the batch is that of all ranks; every rank has to call, and visits the pairs of its own rows.
        name: how errors call the variable.

    Raises:
        ValueError: an unknown kernel, an input that it does not take, a bandwidth or block size that is not above 0.

    Example:
        >>> gram(torch.tensor([[0.0], [1.0]]), bandwidth=1.0).means
        tensor([-0.1967, -0.1967], dtype=torch.float64)
    """
    form = kernel_named(kernel)
    check_block_size(block_size)
    values = form.rows(x, name)
    points, lengths, rank = gather_rows(values.detach()) if gather else (values.detach(), (values.shape[0],), 0)
    walk = Walk(lengths, rank, block_size or TILE)
    with torch.autocast(points.device.type, enabled=False), torch.no_grad():
        points, scale = form.points(points, bandwidth)
        keep = block_size is None and walk.total <= KEPT
        diagonal, means, tiles = _first_pass(points, form, walk, keep)
    return Gram(values, points, scale, means, diagonal, tiles, kernel, walk)


def pair_sums(x: Gram, y: Gram, *, unbiased: bool = False, own: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    r"""Centered sums over all pairs, and the row means: the second pass.

    .. math:: \sum_{ij} K^c_{ij} Q^c_{ij}, \quad
        K^c_{ij} = K_{ij} - \bar K_{i \cdot} - \bar K_{\cdot j} + \bar K_{\cdot \cdot}

    Args:
        x: one variable.
        y: the other.
        unbiased: U-centering, which leaves out the diagonal: row sums are divided by n - 2 and the total by
            (n - 1)(n - 2), and the sum is over i != j (Song et al. 2007).
        own: also the sums of x with itself and of y with itself.

    Returns:
        sums `(1,)`, with `own` `(3,)`: xy, xx, yy; row means of x `(total,)` and of y `(total,)`. All float64.

    Raises:
        ValueError: not as many samples in x as in y.
    """
    if x.walk != y.walk:
        raise ValueError(
            "x and y have to have as many samples, and one block_size: "
            f"got {_described(x.walk)} and {_described(y.walk)}"
        )
    dtype = torch.promote_types(*(torch.float32 if v.kernel == "delta" else v.points.dtype for v in (x, y)))
    plan = Plan((x.kernel, y.kernel), x.walk, unbiased, own, dtype, len(x.tiles))
    with torch.autocast(x.points.device.type, enabled=False):
        # Without gradients torch.compile would hand a context to a forward that takes any number of tensors.
        compute = _PairSums.apply if torch.is_grad_enabled() else _PairSums.forward
        # No tensor may come twice, as in hsic(x, x): torch.compile would refuse.
        return compute(
            x.values, y.values.view_as(y.values), plan, x.means, y.means, x.scale, y.scale, x.points, y.points,
            *_centers(x, unbiased), *_centers(y, unbiased), *x.tiles, *y.tiles,
        )  # fmt: skip


class Side(NamedTuple):
    """One of the two variables, in the second pass.

    Attributes:
        kernel, points: what its tiles are made of.
        row, column: `(total,)`, what to subtract from the rows and the columns of its Gram matrix to center it.
        centers: the same two in float64.
        kept: its tiles, if they were kept.
    """

    kernel: Kernel
    points: Tensor
    row: Tensor
    column: Tensor
    centers: tuple[Tensor, Tensor]
    kept: tuple[Tensor, ...]

    @property
    def rest(self) -> tuple[Tensor, Tensor]:
        """What the rounding of `row` and `column` leaves, in float64."""
        return self.centers[0] - self.row, self.centers[1] - self.column

    def tile(self, index: int, rows: slice, columns: slice) -> Tensor:
        """Returns a tile of the walk, kept or made again."""
        return self.kept[index] if self.kept else self.kernel.tile(self.points, rows, columns)


class Plan(NamedTuple):
    """What the second pass and its backward do, beside the tensors that they read."""

    kernels: tuple[str, str]
    walk: Walk
    unbiased: bool
    own: bool
    dtype: torch.dtype  # of the centered tiles
    kept: int  # how many tiles of x are among the tensors; y may have none

    def sides(self, tensors: tuple[Tensor, ...]) -> tuple[Side, Side]:
        """Sorts the tensors that `pair_sums` lined up."""
        (*points, row_x, column_x, row_y, column_y), tiles = tensors[:6], tensors[6:]
        return (
            self._side(0, points[0], (row_x, column_x), tiles[: self.kept]),
            self._side(1, points[1], (row_y, column_y), tiles[self.kept :]),
        )

    def _side(self, index: int, points: Tensor, centers: tuple[Tensor, Tensor], kept: tuple[Tensor, ...]) -> Side:
        row, column = (center.to(self.dtype) for center in centers)
        return Side(kernel_named(self.kernels[index]), points, row, column, centers, kept)

    def centered(self, side: Side, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """Returns a tile less its row and column means, as a new tensor."""
        tile = (tile - side.row[rows, None]).sub_(side.column[columns])
        if self.unbiased:
            diagonal_of(tile, rows, columns).zero_()
        return tile


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(x, y, plan, means_x, means_y, scale_x, scale_y, *tensors):
        sides = plan.sides(tensors)
        sums = means_x.new_zeros(3 if plan.own else 1)
        for index, (rows, columns, mirrored) in enumerate(plan.walk.visits()):
            a, b = (plan.centered(side, side.tile(index, rows, columns), rows, columns) for side in sides)
            products = ((a, b), (a, a), (b, b)) if plan.own else ((a, b),)
            # A row of a tile is short enough for its own dtype; the total of all is not.
            totals = [torch.linalg.vecdot(*product).sum(dtype=sums.dtype) for product in products]
            sums = sums.add(torch.stack(totals), alpha=2 if mirrored else 1)
        return over_ranks(sums) if plan.walk.ranks > 1 else sums, means_x.clone(), means_y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, ctx.plan, _, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_sums, *grad_means):  # pyright: ignore[reportIncompatibleMethodOverride]
        plan, walk = ctx.plan, ctx.plan.walk
        scales, sides = ctx.saved_tensors[:2], plan.sides(ctx.saved_tensors[2:])
        gradients = [
            torch.zeros_like(side.points[walk.start : walk.stop]) if needed else None
            for side, needed in zip(sides, ctx.needs_input_grad, strict=False)
        ]
        wanted = [
            (this, gradient, _shifts(plan, sides, this, grad_sums, grad_means[this]))
            for this, gradient in enumerate(gradients)
            if gradient is not None
        ]
        for index, (rows, columns, mirrored) in enumerate(walk.visits()):
            tiles = [side.tile(index, rows, columns) for side in sides]
            centered = [plan.centered(side, tile, rows, columns) for side, tile in zip(sides, tiles, strict=True)]
            for this, gradient, (row, column) in wanted:
                kernel, points = sides[this].kernel, sides[this].points
                weights = centered[1 - this] * grad_sums[0]
                if plan.own:
                    weights.add_(centered[this] * (2 * grad_sums[1 + this]))
                weights.add_(row[rows, None]).add_(column[columns])
                if kernel.slope is not None:
                    weights.mul_(kernel.slope(tiles[this]))
                elif plan.unbiased:
                    diagonal_of(weights, rows, columns).zero_()
                here, there = points[rows], points[columns]
                kernel.pull(weights, here, there, gradient[rows.start - walk.start : rows.stop - walk.start])
                if mirrored:
                    kernel.pull(weights.mT, there, here, gradient[columns])
        # Every rank has the gradient of the same value by its own rows; averaged over ranks it has to come out whole.
        return *(
            None if gradient is None else gradient * (scale * walk.ranks)
            for gradient, scale in zip(gradients, scales, strict=True)
        ), *[None] * (len(ctx.saved_tensors) + 3)


def _shifts(
    plan: Plan, sides: tuple[Side, Side], this: int, grad_sums: Tensor, grad_means: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what the derivative by a kernel has beside its centered tiles, for rows and for columns.

    By symmetry a pair takes half of its share in the mean of its row, and half of that of its column. And the rounding
    of the centers, a constant along a row, would stay in the gradient where everything else cancels.
    """
    shifts = []
    for other, own in zip(sides[1 - this].rest, sides[this].rest, strict=True):
        shift = grad_means / (2 * plan.walk.total) - grad_sums[0] * other
        if plan.own:
            shift = shift - 2 * grad_sums[1 + this] * own
        shifts.append(shift.to(plan.dtype))
    return shifts[0], shifts[1]


def _described(walk: Walk) -> str:
    return f"{' + '.join(map(str, walk.lengths))} in blocks of {walk.tile}"


def _first_pass(points: Tensor, kernel: Kernel, walk: Walk, keep: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    wide = wide_dtype(points)
    sums = torch.zeros(walk.total, dtype=wide, device=points.device)
    tiles = []
    for rows, columns, mirrored in walk.visits():
        tile = kernel.tile(points, rows, columns)
        sums[rows].add_(tile.sum(1, dtype=wide))
        if mirrored:
            sums[columns].add_(tile.sum(0, dtype=wide))
        if keep:
            tiles.append(tile)
    if walk.ranks > 1:
        sums = over_ranks(sums)
    inner = points.is_floating_point() and kernel.slope is None
    diagonal = points.square().sum(-1).to(wide) if inner else torch.zeros_like(sums)
    return diagonal, sums / walk.total, tuple(tiles)


def _centers(side: Gram, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Returns what to subtract from the rows and from the columns of a Gram matrix to center it."""
    samples = side.walk.total
    if unbiased:
        sums = samples * side.means - side.diagonal
        row, whole = sums / (samples - 2), sums.sum() / ((samples - 1) * (samples - 2))
    else:
        row, whole = side.means.clone(), side.means.mean()
    return row, row - whole
