r"""Sums over all pairs of a batch, of one or two centered kernels, without a matrix of all pairs.

HSIC, CKA and the Cauchy-Schwarz mutual information are functions of the same few numbers: of the Gram matrices K and Q
of two variables, the row means, and :math:`S = \sum_{ij} K^c_{ij} Q^c_{ij}` of the doubly centered matrices. Two passes
over square tiles compute them: `tiled_gram` the row means, `pair_sums` the centered sums. Centering is a projection,
hence :math:`\partial S / \partial K = Q^c`, and the backward is a third pass.

Wide kernels are close to 1 everywhere. Therefore constants are left out from the start (tiles hold k - 1, by expm1),
matrices are centered before they are multiplied, and totals are float64.
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

TILE = 512  # rows and columns of a tile: a few tiles stay in a core's cache
KEPT = 2048  # up to this number of samples the tiles are kept from pass to pass: 10 MB a variable in float32


@dataclass(frozen=True)
class Walk:
    """The pairs that this process visits: those of its own rows with all rows, tile by tile.

    Attributes:
        lengths: number of rows of each rank; of this process alone without `gather`.
        rank: rank of this process.
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
        """Index of the first row of this rank."""
        return sum(self.lengths[: self.rank])

    @property
    def stop(self) -> int:
        """Index after the last row of this rank."""
        return self.start + self.lengths[self.rank]

    @property
    def ranks(self) -> int:
        """Number of processes that share the rows."""
        return len(self.lengths)

    def visits(self) -> Iterator[tuple[slice, slice, bool]]:
        """Yields rows, columns, and whether the tile also stands for its mirror image across the diagonal."""
        alone = self.ranks == 1
        for row in range(self.start, self.stop, self.tile):
            rows = slice(row, min(row + self.tile, self.stop))
            for column in range(row if alone else 0, self.total, self.tile):
                yield rows, slice(column, min(column + self.tile, self.total)), alone and column > row


class TiledGram(NamedTuple):
    """Gram matrix of a variable, evaluated tile by tile; `hsic` and `cs_qmi` take it in place of the variable.

    Attributes:
        values: `(own rows, dim)`, the variable, which gradients flow to; labels `(own rows, 1)`.
        points: `(total, dim)`, without gradient: the values of all ranks, centered and divided by the bandwidth.
        scale: 0-dim, derivative of a point by its value.
        means: `(total,)` float64, row means of the Gram matrix minus a constant.
        diagonal: `(total,)` float64, its diagonal minus the same constant.
        tiles: its tiles, if they are kept.
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


def tiled_gram(
    x: Tensor,
    *,
    kernel: str = "gaussian",
    bandwidth: Bandwidth = "median",
    block_size: int | None = None,
    gather: bool = False,
    name: str = "x",
) -> TiledGram:
    """Prepares the Gram matrix of a variable for `hsic` and `cs_qmi`, which may share it: the first of the two passes.

    Args:
        x: `(batch, ...)`; integer labels `(batch,)` for the delta kernel.
        kernel: "gaussian", "inverse_multiquadric", "linear" or "delta".
        bandwidth: see `bandwidth_of`; the median is computed from at most 1,024 rows. Linear and delta kernels have
            none.
        block_size: rows of a block of the Gram matrix, which is evaluated block by block; None: chosen automatically,
            and up to 2,048 samples the blocks are kept. It changes time and memory, not the value.
        gather: use the global batch, of all ranks; every rank must call the function.
        name: name of the variable in error messages.

    Raises:
        ValueError: If the kernel is unknown or does not take the variable, or a bandwidth or block size is not above 0.

    Example:
        >>> tiled_gram(torch.tensor([[0.0], [1.0]]), bandwidth=1.0).means
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
    return TiledGram(values, points, scale, means, diagonal, tiles, kernel, walk)


def pair_sums(
    x: TiledGram, y: TiledGram, *, unbiased: bool = False, own: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Centered sums over all pairs, and the row means: the second pass.

    .. math:: \sum_{ij} K^c_{ij} Q^c_{ij}, \quad
        K^c_{ij} = K_{ij} - \bar K_{i \cdot} - \bar K_{\cdot j} + \bar K_{\cdot \cdot}

    Args:
        x: Gram matrix K.
        y: Gram matrix Q.
        unbiased: U-centering, which leaves out the diagonal: row sums are divided by n - 2 and the total by
            (n - 1)(n - 2), and the sum is over i != j (Song et al. 2007).
        own: also the sums of x with itself and of y with itself.

    Returns:
        Sums `(1,)`, with `own` `(3,)`: xy, xx, yy; row means of x `(total,)` and of y `(total,)`. All float64.

    Raises:
        ValueError: If the numbers of samples or the block sizes differ.
    """
    if x.walk != y.walk:
        raise ValueError(
            "x and y must have the same number of samples and the same block_size, "
            f"got {_described(x.walk)} and {_described(y.walk)}"
        )
    dtype = torch.promote_types(*(torch.float32 if v.kernel == "delta" else v.points.dtype for v in (x, y)))
    plan = Plan((x.kernel, y.kernel), x.walk, unbiased, own, dtype, len(x.tiles))
    operands = (Operand(v.points, v.scale, v.means, *_centers(v, unbiased)) for v in (x, y))
    with torch.autocast(x.points.device.type, enabled=False):
        # Without gradients torch.compile would pass a context to a forward that takes any number of tensors.
        compute = _PairSums.apply if torch.is_grad_enabled() else _PairSums.forward
        # No tensor may come twice, as in hsic(x, x): torch.compile refuses that.
        y_values = y.values.view_as(y.values)
        return compute(x.values, y_values, plan, *(tensor for o in operands for tensor in o), *x.tiles, *y.tiles)


class Operand(NamedTuple):
    """The tensors of one variable that the second pass reads; to autograd they are constants.

    Attributes:
        points, scale, means: as in `TiledGram`.
        row_center, column_center: `(total,)` float64, what to subtract from rows and columns to center the matrix.
    """

    points: Tensor
    scale: Tensor
    means: Tensor
    row_center: Tensor
    column_center: Tensor


class Side(NamedTuple):
    """One of the two variables in the second pass: tiles of its Gram matrix, and what centers them.

    Attributes:
        kernel: its kernel.
        operand: its tensors.
        row, column: `(total,)`, the centers in the dtype of the tiles.
        kept: its tiles, if they were kept.
    """

    kernel: Kernel
    operand: Operand
    row: Tensor
    column: Tensor
    kept: tuple[Tensor, ...]

    def tile(self, index: int, rows: slice, columns: slice) -> Tensor:
        """Returns a tile of the walk, kept or evaluated again."""
        return self.kept[index] if self.kept else self.kernel.tile(self.operand.points, rows, columns)

    def rounding(self) -> tuple[Tensor, Tensor]:
        """Returns the rounding errors of the centers of rows and columns, in float64."""
        return self.operand.row_center - self.row, self.operand.column_center - self.column


class Plan(NamedTuple):
    """Options of the second pass and its backward.

    Attributes:
        kernels: names of the kernels of x and y.
        walk: the pairs.
        unbiased, own: as in `pair_sums`.
        dtype: dtype of centered tiles.
        kept: number of kept tiles of x; y may have none.
    """

    kernels: tuple[str, str]
    walk: Walk
    unbiased: bool
    own: bool
    dtype: torch.dtype
    kept: int

    def sides(self, constants: tuple[Tensor, ...]) -> tuple[Side, Side]:
        """Unpacks the constants of `_PairSums`: the operands of x and y, then the kept tiles of x and y."""
        size = len(Operand._fields)
        x, y, tiles = constants[:size], constants[size : 2 * size], constants[2 * size :]
        return (
            self._side(self.kernels[0], Operand(*x), tiles[: self.kept]),
            self._side(self.kernels[1], Operand(*y), tiles[self.kept :]),
        )

    def _side(self, kernel: str, operand: Operand, kept: tuple[Tensor, ...]) -> Side:
        row, column = operand.row_center.to(self.dtype), operand.column_center.to(self.dtype)
        return Side(kernel_named(kernel), operand, row, column, kept)

    def centered(self, side: Side, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """Returns a tile minus its row and column centers, as a new tensor."""
        tile = (tile - side.row[rows, None]).sub_(side.column[columns])
        if self.unbiased:
            diagonal_of(tile, rows, columns).zero_()
        return tile


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(x, y, plan, *constants):
        sides = plan.sides(constants)
        means = [side.operand.means.clone() for side in sides]
        sums = means[0].new_zeros(3 if plan.own else 1)
        for index, (rows, columns, mirrored) in enumerate(plan.walk.visits()):
            a, b = (plan.centered(side, side.tile(index, rows, columns), rows, columns) for side in sides)
            products = ((a, b), (a, a), (b, b)) if plan.own else ((a, b),)
            # A row of a tile is short enough to be summed in its own dtype; the total is not.
            totals = [torch.linalg.vecdot(*product).sum(dtype=sums.dtype) for product in products]
            sums = sums.add(torch.stack(totals), alpha=2 if mirrored else 1)
        return over_ranks(sums) if plan.walk.ranks > 1 else sums, *means

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, ctx.plan, *constants = inputs
        ctx.save_for_backward(*constants)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_sums, *grad_means):  # pyright: ignore[reportIncompatibleMethodOverride]
        plan, walk, sides = ctx.plan, ctx.plan.walk, ctx.plan.sides(ctx.saved_tensors)
        adjoints = [
            Adjoint.of(plan, sides, this, grad_sums, grad_means[this]) if ctx.needs_input_grad[this] else None
            for this in range(2)
        ]
        for index, (rows, columns, mirrored) in enumerate(walk.visits()):
            tiles = [side.tile(index, rows, columns) for side in sides]
            centered = [plan.centered(side, tile, rows, columns) for side, tile in zip(sides, tiles, strict=True)]
            for adjoint in filter(None, adjoints):
                weights = adjoint.weights(plan, tiles, centered, rows, columns)
                adjoint.add(weights, walk, rows, columns, mirrored)
        gradients = (None if adjoint is None else adjoint.by_values(walk) for adjoint in adjoints)
        return *gradients, None, *(None for _ in ctx.saved_tensors)  # the plan and the constants have none


class Adjoint(NamedTuple):
    r"""Derivative of a loss with respect to the Gram matrix of one variable, and the gradient that it adds up to.

    With g the gradients of the sums, m those of the row means, and n samples:

    .. math:: W_{ij} = g_{xy} Q^c_{ij} + 2 g_{xx} K^c_{ij} + \frac{m_i + m_j}{2 n}

    By symmetry half of the derivative of a row mean is assigned to the row and half to the column.

    Attributes:
        this: 0 for x, 1 for y.
        side: the variable.
        gradient: `(own rows, dim)`, of its points.
        grad_xy: 0-dim, g_xy.
        grad_own: 0-dim, 2 g_xx or 2 g_yy; None without `own`.
        row, column: `(total,)`, what W has besides centered tiles: m / 2n, minus the rounding of the centers, which is
            constant along a row and would remain where everything else cancels.
    """

    this: int
    side: Side
    gradient: Tensor
    grad_xy: Tensor
    grad_own: Tensor | None
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, plan: Plan, sides: tuple[Side, Side], this: int, grad_sums: Tensor, grad_means: Tensor) -> Adjoint:
        """Returns the adjoint of a variable before the walk, with a gradient of 0."""
        side, other = sides[this], sides[1 - this]
        grad_own = 2 * grad_sums[1 + this] if plan.own else None
        shifts = []
        for rounding, own_rounding in zip(other.rounding(), side.rounding(), strict=True):
            shift = grad_means / (2 * plan.walk.total) - grad_sums[0] * rounding
            if grad_own is not None:
                shift = shift - grad_own * own_rounding
            shifts.append(shift.to(plan.dtype))
        gradient = torch.zeros_like(side.operand.points[plan.walk.start : plan.walk.stop])
        return cls(this, side, gradient, grad_sums[0], grad_own, *shifts)

    def weights(self, plan: Plan, tiles: list[Tensor], centered: list[Tensor], rows: slice, columns: slice) -> Tensor:
        """Returns a tile of W, for a kernel of u = |a - b|^2 times dk/du, for `Kernel.add_gradient`."""
        weights = centered[1 - self.this] * self.grad_xy
        if self.grad_own is not None:
            weights.add_(centered[self.this] * self.grad_own)
        weights.add_(self.row[rows, None]).add_(self.column[columns])
        if self.side.kernel.derivative is not None:
            weights.mul_(self.side.kernel.derivative(tiles[self.this]))
        elif plan.unbiased:
            diagonal_of(weights, rows, columns).zero_()
        return weights

    def add(self, weights: Tensor, walk: Walk, rows: slice, columns: slice, mirrored: bool) -> None:
        """Adds the gradient of a tile, and that of its mirror image, to the rows of this rank."""
        kernel, points = self.side.kernel, self.side.operand.points
        a, b = points[rows], points[columns]
        kernel.add_gradient(weights, a, b, self.gradient[rows.start - walk.start : rows.stop - walk.start])
        if mirrored:  # on a single rank, whose rows start at 0
            kernel.add_gradient(weights.mT, b, a, self.gradient[columns])

    def by_values(self, walk: Walk) -> Tensor:
        """Returns the gradient with respect to the values of this rank, times the ranks, whose mean DDP takes."""
        return self.gradient * (self.side.operand.scale * walk.ranks)


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
    linear = points.is_floating_point() and kernel.derivative is None  # of all others the diagonal is k - 1 = 0
    diagonal = points.square().sum(-1).to(wide) if linear else torch.zeros_like(sums)
    return diagonal, sums / walk.total, tuple(tiles)


def _centers(gram: TiledGram, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Returns what to subtract from the rows and the columns of a Gram matrix to center it."""
    samples = gram.walk.total
    if unbiased:
        sums = samples * gram.means - gram.diagonal
        row, whole = sums / (samples - 2), sums.sum() / ((samples - 1) * (samples - 2))
    else:
        row, whole = gram.means.clone(), gram.means.mean()
    return row, row - whole
