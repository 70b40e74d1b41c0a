"""Codebook features by their definition, and interventions on codes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ibreg import CodebookBottleneck, Regularized
from ibreg.layers.codebook import CodeIntervention
from ibreg.layers.intervention import intervening

FEATURES, CODES, TOP_K = 6, 20, 3


def build():
    return CodebookBottleneck(FEATURES, codes=CODES, top_k=TOP_K)


def cosines(layer, x):
    return F.cosine_similarity(x.double().unsqueeze(1), layer.codebook.double().unsqueeze(0), dim=-1)


def test_code_is_the_sum_of_the_most_similar_codes():
    layer, x = build(), torch.randn(40, FEATURES)
    best = cosines(layer, x).topk(TOP_K).indices
    expected = layer.codebook[best].sum(1)
    out = layer.measure(x)
    torch.testing.assert_close(out.z, expected)
    torch.testing.assert_close(out.penalty, (x - expected).square().sum(1).mean())
    assert out.logs["used"] == best.unique().numel() / CODES
    assert torch.equal(layer.eval()(100 * x), layer(x))
    maps = x.reshape(4, 2, 5, FEATURES).movedim(-1, 1)
    assert torch.equal(layer(maps), layer(x).reshape(4, 2, 5, FEATURES).movedim(-1, 1))


def test_gradients_go_straight_through_and_to_the_selected_codes():
    layer, x = build(), torch.randn(5, FEATURES, requires_grad=True)
    weight = torch.randn(5, FEATURES)
    out = layer.measure(x)
    (out.z * weight).sum().backward(retain_graph=True)
    assert torch.equal(x.grad, weight)
    best = cosines(layer, x).topk(TOP_K).indices
    expected = torch.zeros(CODES, FEATURES)
    for row, codes in enumerate(best):
        expected[codes] += weight[row]
    torch.testing.assert_close(layer.codebook.grad, expected)
    assert torch.autograd.grad(out.penalty, x, allow_unused=True) == (None,)


def test_codes_are_forced_and_banned():
    layer, x = build().eval(), torch.randn(40, FEATURES)
    plain = layer(x)
    similar = cosines(layer, x)
    banned = [int(code) for code in similar[0].topk(2).indices]
    forced = [int(similar[0].argmin())]
    allowed = similar.clone()
    allowed[:, banned] = -torch.inf
    allowed[:, forced] = torch.inf
    expected = layer.codebook[allowed.topk(TOP_K).indices].sum(1)
    with intervening({layer: CodeIntervention(forced=forced, banned=banned)}):
        torch.testing.assert_close(layer(x), expected)
    with intervening({layer: CodeIntervention(forced=[4, 1, 7])}):
        torch.testing.assert_close(layer(x), layer.codebook[[1, 4, 7]].sum(0).expand(40, -1))
    with intervening({build(): CodeIntervention(banned=banned)}):
        assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (CodeIntervention(forced=[20]), r"from 0 to 19, got \[20\]"),
        (CodeIntervention(banned=[-1]), "from 0 to 19"),
        (CodeIntervention(forced=[2], banned=[2]), "different integers"),
        (
            CodeIntervention(forced=[0, 1, 2, 3]),
            "at most top_k=3 codes can be forced and 17 of 20 banned, got 4 forced",
        ),
        (CodeIntervention(banned=range(18)), "got 0 forced and 18 banned"),
    ],
)
def test_wrong_interventions_say_what_is_valid(intervention, message):
    layer = build().eval()
    with intervening({layer: intervention}), pytest.raises(ValueError, match=message):
        layer(torch.zeros(2, FEATURES))


def test_an_intervention_inside_a_checkpoint_is_refused():
    layer = build()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=False)

    with (
        intervening({layer: CodeIntervention(forced=[1])}),
        pytest.raises(RuntimeError, match="out of the checkpointed part"),
    ):
        Regularized(Net())(torch.randn(3, FEATURES, requires_grad=True))


def test_codes_learn_the_features():
    x = torch.randn(8, FEATURES).repeat(20, 1)
    layer = CodebookBottleneck(FEATURES, codes=32, top_k=1)
    before = layer.measure(x).penalty.item()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        layer.measure(x).penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert layer.measure(x).penalty < 0.2 * before


def test_wrong_options_say_what_is_valid():
    with pytest.raises(ValueError, match="top_k must be at most codes=4, got 5"):
        CodebookBottleneck(FEATURES, codes=4, top_k=5)
    with pytest.raises(ValueError, match=r"codes must be an integer of at least 1 [(]number of codes[)], got 0"):
        CodebookBottleneck(FEATURES, codes=0)
