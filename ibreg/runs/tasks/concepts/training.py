"""Configuration of concept layers by the data, and joint, sequential or independent training of their heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, cast

import torch
from pydantic import BeforeValidator, ConfigDict, SerializeAsAny, model_validator
from torch import Tensor, nn

from ibreg.evaluation.concepts.interventions import concept_layer
from ibreg.layers.concept.base import ConceptIntervention, ConceptLayer
from ibreg.layers.intervention import intervening
from ibreg.regularized import Regularized, RegularizedOutput
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.config.recipe import TrainingConfig
from ibreg.runs.config.section import check_known, one_of
from ibreg.runs.data import concepts as concept_data
from ibreg.runs.data.concept_rows import ConceptData, ConceptRequest
from ibreg.runs.tasks.concepts.examination import ExaminationConfig


def with_concepts(cfg: ConceptsConfig, data: ConceptData) -> ConceptsConfig:
    """Return the configuration with the concepts of the data in all concept layers that do not set their own.

    A layer without a head of its own gets the size of its code, so that the network's head fits.

    Args:
        cfg: configuration of the recipe.
        data: data set with the concepts, and with `balanced` the weights of positive labels.

    Raises:
        ValueError: If a layer does not learn concepts from labels, or has other concepts than the data.
    """
    sections = {method: dict(options) for method, options in cfg.bottleneck.items()}
    for method in cfg.bottlenecks:
        layer = build_bottleneck(cfg, method)
        if not isinstance(layer, ConceptLayer):
            continue
        if "concepts" not in layer.needs:
            raise ValueError(
                f"bottleneck {method} is not trained with labels but fitted to a frozen network: see "
                "ibreg.layers.concept.fitting, and leave it out of this recipe"
            )
        options = sections[method]
        if layer.concepts is None:
            layer = cast(ConceptLayer, build_bottleneck(cfg, method, concepts=data.concepts))
            options["concepts"] = data.concepts.entries()  # the configuration is a file
        if cfg.balanced and layer.pos_weight is None:
            options["pos_weight"] = data.concepts.positive_weights(data.train.concepts)
        if len(layer.concepts) != len(data.concepts):
            raise ValueError(
                f"bottleneck.{method}.concepts must be {len(data.concepts)} as in the labels of {data.name}, got "
                f"{len(layer.concepts)}: {', '.join(data.concepts.names)}"
            )
        if layer.head in (None, "identity") and layer.out_features is None:
            options |= {"head": "identity", "out_features": layer.code_features}
    return cfg.model_copy(update={"bottleneck": sections})


def training_of(cfg: ConceptsConfig, method: str) -> str:
    """Return the training of a method: that of `trainings` if it is listed there, else `training`."""
    return cfg.trainings.get(method, cfg.training)


def trained_as(model: Regularized, training: str) -> Regularized:
    """Return a model whose concepts and head are trained jointly, or each by its own loss.

    joint: the gradient of the head reaches the encoder (Koh et al. 2020, arXiv 2007.04612: L_y + beta L_c). sequential:
    it stops at the code, so that the encoder learns from concepts alone, and the head reads predicted concepts.
    independent: as sequential, but in training the head reads the true concepts.

    Args:
        model: a model with one concept layer.
        training: "joint", "sequential" or "independent".

    Raises:
        ValueError: If the training is not joint and the code is more than its concepts, or if it is independent and the
            code is not a probability.
    """
    return TRAININGS[training](model)


class IndependentlyTrained(Regularized):
    """A `Regularized` whose head reads the true concepts in training, as far as they are known."""

    def forward(self, x: Tensor, *, concepts: Tensor | None = None, **further: Any) -> RegularizedOutput:
        """Run the model; in training with an intervention on every labeled concept."""
        if not self.training or concepts is None:
            return super().forward(x, concepts=concepts, **further)
        truth = ConceptIntervention(~concepts.isnan(), torch.nan_to_num(concepts))
        with intervening({concept_layer(self.model): truth}):
            return super().forward(x, concepts=concepts, **further)


def _sequential(model: Regularized) -> Regularized:
    layer = concept_layer(model)
    if layer.code_features != len(layer.concepts):
        raise ValueError(
            f"a code of {layer.code_features} features is more than its {len(layer.concepts)} concepts; the rest of "
            "it learns from the task alone: use training=joint"
        )
    cast(nn.Module, layer.decoder).register_forward_pre_hook(_detached)
    return model


def _detached(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in inputs)


def _independent(model: Regularized) -> Regularized:
    model = _sequential(model)
    if concept_layer(model).intervention_space != "probability":
        raise ValueError(
            "independent training gives the head true concepts, which are not logits: use code=probability or code=hard"
        )
    return IndependentlyTrained(model.model, model.draws)


TRAININGS: dict[str, Callable[[Regularized], Regularized]] = {
    "joint": lambda model: model,
    "sequential": _sequential,
    "independent": _independent,
}


class ConceptsConfig(TrainingConfig, ExaminationConfig):
    """The keys of the recipe of concept bottlenecks.

    Attributes:
        data: the data set.
        split_by_seed: whether every seed has its own split, or its own generated data.
        training: how concepts and head are trained, see `trained_as`.
        trainings: training of single methods.
        balanced: whether positive labels of binary concepts have weight negatives / positives.
    """

    model_config = ConfigDict(title="concepts")
    data: Annotated[SerializeAsAny[ConceptRequest], BeforeValidator(concept_data.request)]
    split_by_seed: bool
    training: Annotated[str, *one_of(TRAININGS)]
    trainings: dict[str, Annotated[str, *one_of(TRAININGS)]]
    balanced: bool

    @model_validator(mode="after")
    def _check_trainings(self):
        check_known("trainings", self.trainings, self.bottleneck)
        return self
