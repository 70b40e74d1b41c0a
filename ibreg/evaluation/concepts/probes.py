"""Probes: small networks that predict labels from subsets of features, many of them trained at once.

A probe is fitted on one half of the samples and evaluated on the other, so that memorized labels do not count.
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
# With fewer samples in a half, neither a network nor an AUROC is meaningful.
LEAST_SAMPLES = 20


class _Networks(nn.Module):
    """Networks with one hidden layer, evaluated in parallel; each reads the features of its row of a mask."""

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
        """Map `(samples, features)` to logits `(networks, samples, outputs)`."""
        hidden = torch.relu(x @ (self.hidden * self.mask) + self.hidden_bias)
        return hidden @ self.output + self.output_bias


def probe(features: Tensor, labels: Tensor, masks: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Fit one network per mask on half of the samples and return its predictions for the other half.

    A network has one hidden layer of 16 ReLUs, and learns all labels jointly by the binary cross-entropy.

    Args:
        features: `(samples, features)`; standardized by the half that is fitted on.
        labels: `(samples, outputs)`, from 0 to 1, NaN where one is missing.
        masks: `(probes, features)`, True where a probe reads a feature.
        seed: random seed of the halves and of the networks; the global generator is not used.

    Returns:
        Logits `(probes, held-out samples, outputs)`, and the rows of these samples.

    Raises:
        ValueError: If there are fewer than 40 samples.
    """
    samples = len(features)
    if samples < 2 * LEAST_SAMPLES:
        raise ValueError(f"a probe must be fitted and evaluated on {LEAST_SAMPLES} samples each, got {samples} in all")
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
    """Measure the AUROC of each label predicted from each set of features, on held-out samples.

    Args:
        features: `(samples, features)`.
        labels: `(samples, outputs)`, 0 or 1, NaN where one is missing.
        masks: `(probes, features)`, True where a probe reads a feature. A probe without features has AUROC 0.5.
        seed: as for `probe`.

    Returns:
        `(probes, outputs)`.

    Raises:
        ValueError: As for `probe`, or if a label has a single value in one of the two halves.

    Example:
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> probed_auroc(x, (x > 0).float(), torch.eye(2).bool()).round(1).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    logits, held_out = probe(features, labels, masks, seed=seed)
    labels = labels.detach().to("cpu", torch.float32)
    fitted = torch.ones(len(labels), dtype=torch.bool)
    fitted[held_out] = False
    areas = np.empty((len(masks), labels.shape[1]))
    for output in range(labels.shape[1]):
        for half in (labels[fitted, output], labels[held_out, output]):
            if len(half[~half.isnan()].unique()) < 2:
                raise ValueError(
                    f"label {output} must have two values in both halves that a probe is fitted and evaluated on, got "
                    "one: give more samples, or leave it out"
                )
        truth = labels[held_out, output]
        known = ~truth.isnan()
        areas[:, output] = _auroc(logits[:, known, output].numpy(), truth[known].numpy() > 0.5)
    areas[~masks.any(1).numpy()] = 0.5
    return areas


def _auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the AUROC of scores `(probes, samples)` of one label, by the rank sum of Mann and Whitney."""
    positives, negatives = positive.sum(), (~positive).sum()
    ranks = rankdata(scores, axis=1)[:, positive].sum(1)
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)
