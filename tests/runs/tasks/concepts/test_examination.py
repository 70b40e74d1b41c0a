"""What an examination says of continuous concepts, in their own units."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ibreg
from ibreg.layers.concept.specification import Concepts
from ibreg.runs.data.concept_rows import ConceptRequest, assemble
from ibreg.runs.tasks.concepts.examination import _errors_in_units, _samples


def test_errors_of_continuous_concepts_are_in_their_unit_and_others_have_none():
    concepts = Concepts.of(["red", *({"name": name, "kind": "continuous"} for name in ("mass", "age", "none"))])
    raw = torch.tensor([[1.0, 2000, 30, 1], [0, 4000, 50, 2], [1, 9000, torch.nan, 3], [0, 5000, 40, 5]]).double()
    inputs = torch.zeros(4, 2)
    data = assemble(
        "t", ConceptRequest(), concepts, inputs=inputs.__getitem__, classes=torch.tensor([0, 1, 0, 1]).numpy(),
        class_names=["a", "b"], labels=raw.numpy(), splits=[torch.arange(4).numpy(), torch.arange(0).numpy(), [0, 1]],
    )  # fmt: skip
    labels = data.train.concepts.clone()
    labels[:, 3] = torch.nan
    predicted = raw + torch.tensor([[0.5, 30, 3, 0], [0.5, -40, 4, 0], [0, 0, 9, 0], [0, 0, 0, 0]])
    scaled = (predicted - torch.tensor(data.label_means)) / torch.tensor(data.label_stds)
    errors = _errors_in_units(scaled.float(), labels, data)
    expected = {"concept_rmse_mass": 25, "concept_rmse_age": (25 / 3) ** 0.5}  # of 4 and of 3 known labels
    assert errors == {name: pytest.approx(error, rel=1e-4) for name, error in expected.items()}


def test_samples_hold_the_standardized_labels_that_plots_convert_once():
    concepts = Concepts.of(["red", {"name": "mass", "kind": "continuous"}])
    raw = torch.tensor([[1.0, 2000], [0, 4000], [1, 9000], [0, 5000]]).double()
    data = assemble(
        "t", ConceptRequest(), concepts, inputs=torch.randn(4, 2).__getitem__,
        classes=torch.tensor([0, 1, 0, 1]).numpy(), class_names=["a", "b"], labels=raw.numpy(),
        splits=[torch.arange(4).numpy(), torch.arange(0).numpy(), [0, 1]],
    )  # fmt: skip
    layer = ibreg.ConceptBottleneck(2, concepts)
    model = ibreg.Regularized(nn.Sequential(nn.Identity(), layer, nn.Linear(layer.out_features, 2)))
    samples = _samples(model, data, torch.device("cpu"), torch.zeros(4, 2))
    shown = torch.stack([sample.labels for sample in samples])
    assert_close(shown, data.test.concepts)
    mean, std = data.label_means[1], data.label_stds[1]
    assert_close(shown[:, 1].double() * std + mean, raw[:2, 1], rtol=1e-5, atol=1e-3)
