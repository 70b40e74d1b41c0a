"""Conditional distributions of Gaussians with full covariance, given some of their coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def conditional_gain(covariance: Tensor, mask: Tensor) -> Tensor:
    r"""Gain matrix of a conditional Gaussian: regression coefficients of the unknown coordinates on the known ones.

    .. math:: G_{uk} = \Sigma_{uk} \Sigma_{kk}^{-1}

    for unknown u and known k, 0 elsewhere. If z is a sample of the joint Gaussian, z + G (values - z) is one of the
    conditional (Matheron's rule).

    Args:
        covariance: `(..., dim, dim)`, positive definite.
        mask: `(..., dim)`, bool, True where a coordinate is known; it may differ between rows.

    Returns:
        `(..., dim, dim)`.

    Example:
        >>> conditional_gain(torch.tensor([[4.0, 2.0], [2.0, 3.0]]), torch.tensor([True, False]))
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    known = mask.to(covariance.dtype)
    rows, columns = known.unsqueeze(-1), known.unsqueeze(-2)
    # Covariance of the known coordinates, and ones on the diagonal elsewhere: rows with different masks are a batch.
    inner = covariance * rows * columns + torch.diag_embed(1 - known)
    outer = covariance * (1 - rows) * columns
    return torch.cholesky_solve(outer.mT, torch.linalg.cholesky(inner)).mT


def condition_gaussian(mean: Tensor, covariance: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance of a Gaussian, conditional on some of its coordinates.

    .. math:: \mu_u' = \mu_u + \Sigma_{uk} \Sigma_{kk}^{-1} (v_k - \mu_k), \qquad
        \Sigma_{uu}' = \Sigma_{uu} - \Sigma_{uk} \Sigma_{kk}^{-1} \Sigma_{ku}

    Known coordinates have their value as the mean and a covariance of 0.

    Args:
        mean: `(..., dim)`.
        covariance: `(..., dim, dim)`, positive definite.
        mask: `(..., dim)`, bool, True where a coordinate is known.
        values: `(..., dim)`, read where the mask is True.

    Returns:
        Mean `(..., dim)` and covariance `(..., dim, dim)`.

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


def move_by_gain(sample: Tensor, gain: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    r"""Maps samples of a Gaussian, or its mean, to those of the conditional, by Matheron's rule.

    .. math:: z' = z + G (v - z)

    Args:
        sample: `(..., dim)`, z.
        gain: `(..., dim, dim)`, G, of `conditional_gain` with the same mask.
        mask: `(..., dim)`, bool, True where a coordinate is known.
        values: `(..., dim)`, v, read where the mask is True.

    Returns:
        `(..., dim)`.

    Example:
        >>> known = torch.tensor([True, False])
        >>> gain = conditional_gain(torch.tensor([[4.0, 2.0], [2.0, 3.0]]), known)
        >>> move_by_gain(torch.zeros(2), gain, known, torch.tensor([4.0, 0.0]))
        tensor([4., 2.])
    """
    innovation = torch.where(mask, values - sample, 0)
    return torch.where(mask, values, sample + (gain @ innovation.unsqueeze(-1)).squeeze(-1))
