"""Small networks, many trained at a time: what can be read off from which features.

A probe sees some of the features and predicts all labels. It is fitted on one half of the samples and judged on the
other, so that it counts what is there to be found again, not what it can learn by heart.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 16
STEPS = 150
LEARNING_RATE = 0.03
WEIGHT_DECAY = 1e-3
# With fewer samples in a half neither a network nor an area under a curve says anything.
LEAST_SAMPLES = 20


class _Networks(nn.Module):
    """Networks of one hidden layer side by side; each sees the features that its row of a mask has."""

    def __init__(self, mask: Tensor, outputs: int, generator: torch.Generator):
        super().__init__()
        networks, features = mask.shape
        seen = mask.sum(1).clamp(min=1).view(-1, 1, 1)
        self.mask = mask.float().unsqueeze(2)
        self.hidden = nn.Parameter(torch.randn(networks, features, HIDDEN, generator=generator) * (2 / seen) ** 0.5)
        self.hidden_bias = nn.Parameter(torch.randn(networks, 1, HIDDEN, generator=generator) * 0.5)
        self.output = nn.Parameter(torch.randn(networks, HIDDEN, outputs, generator=generator) / HIDDEN**0.5)
        self.output_bias = nn.Parameter(torch.zeros(networks, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(samples, features)` to logits `(networks, samples, outputs)`."""
        hidden = torch.relu(x @ (self.hidden * self.mask) + self.hidden_bias)
        return hidden @ self.output + self.output_bias


def probe(features: Tensor, labels: Tensor, masks: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Fits one network per mask on half of the samples and returns what they say of the other half.

    A network has one hidden layer of 16 rectifiers, and learns all labels together by the binary cross-entropy.

    Args:
        features: `(samples, features)`; standardized by the half that is fitted.
        labels: `(samples, outputs)`, 0 or 1 (or between), NaN where there is none.
        masks: `(probes, features)`, True where a probe sees a feature.
        seed: of the halves and of the networks; the global generator stays as it is.

    Returns:
        logits `(probes, held-out samples, outputs)`, and the rows of these samples.

    Raises:
        ValueError: fewer than 40 samples.
    """
    samples = len(features)
    if samples < 2 * LEAST_SAMPLES:
        raise ValueError(f"a probe is fitted and judged on {LEAST_SAMPLES} samples each, there are {samples} in all")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(samples))
    fitted, held_out = order[: samples // 2], order[samples // 2 :]
    features = features.detach().to("cpu", torch.float32)
    deviation, mean = torch.std_mean(features[fitted], 0, correction=0)
    features = (features - mean) / torch.where(deviation > 0, deviation, 1)
    labels = labels.detach().to("cpu", torch.float32)
    known = ~labels[fitted].isnan()
    targets = torch.where(known, labels[fitted], 0).expand(len(masks), -1, -1)
    weights = (known / known.sum().clamp(min=1)).expand_as(targets)
    networks = _Networks(masks, labels.shape[1], torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(networks.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    with torch.enable_grad():
        for _ in range(STEPS):
            loss = F.binary_cross_entropy_with_logits(networks(features[fitted]), targets, weights, reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return networks(features[held_out]), held_out


def probed_auroc(features: Tensor, labels: Tensor, masks: Tensor, *, seed: int = 0) -> np.ndarray:
    """Measures the area under the ROC curve of every label from every set of features, on held-out samples.

    Args:
        features: `(samples, features)`.
        labels: `(samples, outputs)`, 0 or 1, NaN where there is none.
        masks: `(probes, features)`, True where a probe sees a feature. A probe that sees none has 0.5.
        seed: as for `probe`.

    Returns:
        `(probes, outputs)`.

    Raises:
        ValueError: as for `probe`, or one of the two halves has one value of a label alone.

    Example:
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> probed_auroc(x, (x > 0).float(), torch.eye(2).bool()).round(1).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    logits, held_out = probe(features, labels, masks, seed=seed)
    labels = labels.detach().to("cpu", torch.float32)
    fitted = torch.ones(len(labels), dtype=torch.bool)
    fitted[held_out] = False
    found = np.empty((len(masks), labels.shape[1]))
    for output in range(labels.shape[1]):
        for half in (labels[fitted, output], labels[held_out, output]):
            if len(half[~half.isnan()].unique()) < 2:
                raise ValueError(
                    f"label {output} has one value alone in one of the halves that a probe is fitted and judged on: "
                    "give more samples, or leave it out"
                )
        truth = labels[held_out, output]
        known = ~truth.isnan()
        found[:, output] = _auroc(logits[:, known, output].numpy(), truth[known].numpy() > 0.5)
    found[~masks.any(1).numpy()] = 0.5
    return found


def _auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Areas of many scores `(probes, samples)` of one label, by the rank sum of Mann and Whitney."""
    positives, negatives = positive.sum(), (~positive).sum()
    ranks = rankdata(scores, axis=1)[:, positive].sum(1)
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)
