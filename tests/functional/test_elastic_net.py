"""The elastic net against numpy, and its gradient."""

import numpy as np
import pytest
import torch

from ibreg.functional import elastic_net


@pytest.mark.parametrize("prior", [0.0, torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)])
def test_against_numpy(prior):
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    deviation = weight.detach().numpy() - np.asarray(prior)
    expected = 0.3 * np.abs(deviation).sum() + 0.7 * (deviation**2).sum()
    measured = elastic_net(weight, l1=0.3, l2=0.7, prior=prior)
    np.testing.assert_allclose(measured.detach(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda weight: elastic_net(weight, l1=0.3, l2=0.7, prior=prior), weight)


def test_without_weights_or_deviation_the_penalty_is_0():
    assert elastic_net(torch.randn(2, 3)) == 0
    assert elastic_net(torch.ones(2, 3), l1=1.0, l2=1.0, prior=1.0) == 0
