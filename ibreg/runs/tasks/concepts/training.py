"""Configuration of concept layers by the data, and joint, sequential or independent training of their heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ibreg.evaluation.concepts.interventions import concept_layer
from ibreg.layers.concept.base import ConceptIntervention, ConceptLayer
from ibreg.layers.constraints import OneOf
from ibreg.layers.intervention import intervening
from ibreg.regularized import Regularized, RegularizedOutput
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.data.concept_rows import ConceptData


def with_concepts(cfg: DictConfig, data: ConceptData) -> DictConfig:
    """Return the configuration with the concepts of the data in all concept layers that do not set their own.

    A layer without a head of its own gets the size of its code, so that the network's head fits.

    Args:
        cfg: configuration of the recipe.
        data: data set with the concepts, and with `balanced` the weights of positive labels.

    Raises:
        ValueError: If a layer does not learn concepts from labels, or has other concepts than the data.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for method in cfg.bottlenecks:
        layer = build_bottleneck(cfg, method)
        if not isinstance(layer, ConceptLayer):
            continue
        if "concepts" not in layer.needs:
            raise ValueError(
                f"bottleneck {method} is not trained with labels but fitted to a frozen network: see "
                "ibreg.layers.concept.fitting, and leave it out of this recipe"
            )
        options = cfg.bottleneck[method]
        if layer.concepts is None:
            layer = cast(ConceptLayer, build_bottleneck(cfg, method, concepts=data.concepts))
            options.concepts = data.concepts.entries()  # the configuration is a file
        if cfg.balanced and layer.pos_weight is None:
            options.pos_weight = data.concepts.positive_weights(data.train.concepts)
        if len(layer.concepts) != len(data.concepts):
            raise ValueError(
                f"bottleneck.{method}.concepts must be {len(data.concepts)} as in the labels of {data.name}, got "
                f"{len(layer.concepts)}: {', '.join(data.concepts.names)}"
            )
        if layer.head in (None, "identity") and layer.out_features is None:
            options.head, options.out_features = "identity", layer.code_features
    return cfg


def training_of(cfg: DictConfig, method: str) -> str:
    """Return the training of a method: that of `trainings` if it is listed there, else `training`.

    Raises:
        ValueError: If the training or the method does not exist.
    """
    if not isinstance(cfg.trainings, DictConfig):
        raise ValueError(f"trainings must map methods to their training, {{concept: sequential}}, got {cfg.trainings}")
    unknown = [str(key) for key in cfg.trainings if key not in cfg.bottleneck]
    if unknown:
        raise ValueError(f"trainings must be of {', '.join(map(str, cfg.bottleneck))}, got one of {', '.join(unknown)}")
    return OneOf(TRAININGS).check(f"training of {method}", cfg.trainings.get(method, cfg.training))


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
