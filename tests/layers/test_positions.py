"""Means over positions and over the batch against numpy, padding and missing targets left out."""

import numpy as np
import pytest
import torch

from ibreg.layers.positions import batch_mean, check_mask, mean_over_positions

BATCH, POSITIONS, FEATURES = 4, (5, 2), 3


def masked():
    """A mask with a sample that is all padding."""
    mask = torch.rand(BATCH, *POSITIONS) < 0.6
    mask[0], mask[1] = False, True
    return mask


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mean_over_positions(dtype):
    features, mask = torch.randn(BATCH, *POSITIONS, FEATURES, dtype=torch.float64), masked()
    expected = [
        x[keep].mean(0) if keep.any() else np.zeros(FEATURES)
        for x, keep in zip(features.numpy(), mask.numpy(), strict=True)
    ]
    features[~mask] = torch.nan  # padding is not read
    np.testing.assert_allclose(mean_over_positions(features, mask.to(dtype)), expected)
    features = torch.randn(BATCH, *POSITIONS, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(mean_over_positions(features), features.mean((1, 2)))


def test_batch_mean_is_the_mean_of_the_sums_over_positions():
    values, mask = torch.randn(BATCH, *POSITIONS, dtype=torch.float64), masked()
    per_sample = (values.numpy() * mask.numpy()).reshape(BATCH, -1).sum(1)
    np.testing.assert_allclose(batch_mean(values), values.numpy().reshape(BATCH, -1).sum(1).mean())
    np.testing.assert_allclose(batch_mean(values, mask), per_sample.mean())
    np.testing.assert_allclose(batch_mean(values[:, 0, 0], mask), values[:, 0, 0].mean())
    assert batch_mean(values[:0]) == 0


def test_samples_without_targets_are_left_out_of_the_batch_mean():
    values, valid = torch.randn(BATCH, *POSITIONS, dtype=torch.float64), torch.tensor([True, False, True, True])
    torch.testing.assert_close(batch_mean(values, valid=valid), batch_mean(values[valid]))
    positions = masked()
    expected = (values * positions).sum() / 3  # one sample has no valid position
    torch.testing.assert_close(batch_mean(values, valid=positions), expected)
    assert batch_mean(values, valid=torch.zeros(BATCH, dtype=torch.bool)) == 0
    assert batch_mean(values[:0], valid=valid[:0]) == batch_mean(values[:0], valid=positions[:0].bool()) == 0


def test_masks_of_another_shape_are_errors():
    mask = torch.ones(BATCH, 3)
    message = r"the mask must have the shape of the bottleneck's positions, \(4, 5, 2\), got \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        check_mask(mask, torch.Size((BATCH, *POSITIONS)))
    with pytest.raises(ValueError, match=message):
        mean_over_positions(torch.zeros(BATCH, *POSITIONS, FEATURES), mask)
    with pytest.raises(ValueError, match=message):
        batch_mean(torch.zeros(BATCH, *POSITIONS), mask)
