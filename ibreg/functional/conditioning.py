"""Full Gaussians, some of whose coordinates are known: what is left of the others."""

from __future__ import annotations

import torch
from torch import Tensor


def conditional_gain(covariance: Tensor, mask: Tensor) -> Tensor:
    r"""What one unit of surprise in each known coordinate moves the others: the gain of a conditional Gaussian.

    .. math:: G_{uk} = \Sigma_{uk} \Sigma_{kk}^{-1}

    for unknown u and known k, 0 elsewhere. Of a draw from the whole Gaussian, `draw + G (values - draw)` is one from
    the conditional (Matheron's rule).

    Args:
        covariance: `(..., dim, dim)`, positive definite.
        mask: `(..., dim)`, bool, True where a coordinate is known; another one for each row.

    Returns:
        `(..., dim, dim)`.

    Example:
        >>> conditional_gain(torch.tensor([[4.0, 2.0], [2.0, 3.0]]), torch.tensor([True, False]))
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    known = mask.to(covariance.dtype)
    rows, columns = known.unsqueeze(-1), known.unsqueeze(-2)
    # Known coordinates alone; ones elsewhere on the diagonal, so that rows with different masks are one batch.
    inner = covariance * rows * columns + torch.diag_embed(1 - known)
    outer = covariance * (1 - rows) * columns
    return torch.cholesky_solve(outer.mT, torch.linalg.cholesky(inner)).mT


def condition_gaussian(mean: Tensor, covariance: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance of a Gaussian after some of its coordinates became known.

    .. math:: \mu_u' = \mu_u + \Sigma_{uk} \Sigma_{kk}^{-1} (v_k - \mu_k), \qquad
        \Sigma_{uu}' = \Sigma_{uu} - \Sigma_{uk} \Sigma_{kk}^{-1} \Sigma_{ku}

    Known coordinates have their value as mean, and covariance 0.

    Args:
        mean: `(..., dim)`.
        covariance: `(..., dim, dim)`, positive definite.
        mask: `(..., dim)`, bool, True where a coordinate is known.
        values: `(..., dim)`, read where the mask is True.

    Returns:
        mean `(..., dim)` and covariance `(..., dim, dim)`.

    Example:
        >>> covariance, known = torch.tensor([[4.0, 2.0], [2.0, 3.0]]), torch.tensor([True, False])
        >>> condition_gaussian(torch.zeros(2), covariance, known, torch.tensor([4.0, 0.0]))
        (tensor([4., 2.]), tensor([[0., 0.],
                [0., 2.]]))
    """
    gain = conditional_gain(covariance, mask)
    unknown = (~mask).to(covariance.dtype)
    both = unknown.unsqueeze(-1) * unknown.unsqueeze(-2)
    return move_by_gain(mean, gain, mask, values), (covariance - gain @ covariance) * both


def move_by_gain(draw: Tensor, gain: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Moves a Gaussian's mean, or draws from it, to the conditional that a gain belongs to.

    Args:
        draw: `(..., dim)`.
        gain: `(..., dim, dim)`, of `conditional_gain` with the same mask.
        mask: `(..., dim)`, bool.
        values: `(..., dim)`, read where the mask is True.
    """
    surprise = torch.where(mask, values - draw, 0)
    return torch.where(mask, values, draw + (gain @ surprise.unsqueeze(-1)).squeeze(-1))
