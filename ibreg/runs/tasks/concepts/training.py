"""How a concept model is trained: its layers told the concepts of the data, encoder and head together or apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ibreg.evaluation.concepts.interventions import concept_layer
from ibreg.layers.concept.base import ConceptIntervention, ConceptLayer
from ibreg.layers.intervention import intervening
from ibreg.regularized import Regularized, RegularizedOutput
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.data.concept_rows import ConceptData


def with_concepts(cfg: DictConfig, data: ConceptData) -> DictConfig:
    """Returns the configuration with the concepts of the data in all concept layers that have none of their own.

    A layer whose head is the network's own gets its size of the code said, so that the network's head fits.

    Args:
        cfg: the recipe's configuration.
        data: gives the concepts, and with `balanced` the weights of positive labels.

    Raises:
        ValueError: a layer that does not learn concepts from labels, other concepts than those of the data.
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
                "ibreg.layers.concept.fitting, and leave it out here"
            )
        options = cfg.bottleneck[method]
        if layer.concepts is None:
            options.concepts = data.concepts.entries()
        if cfg.balanced and layer.pos_weight is None:
            options.pos_weight = data.concepts.positive_weights(data.train.concepts)
        layer = build_bottleneck(cfg, method)
        if len(layer.concepts) != len(data.concepts):
            raise ValueError(
                f"bottleneck.{method}.concepts are {len(layer.concepts)}, but the labels of {data.name} are "
                f"{len(data.concepts)}: {', '.join(data.concepts.names)}"
            )
        if layer.head in (None, "identity") and layer.out_features is None:
            options.head, options.out_features = "identity", layer.code_features
    return cfg


def training_of(cfg: DictConfig, method: str) -> str:
    """Returns how a method is trained: its own way in `trainings`, else `training`.

    Raises:
        ValueError: a way that there is not, or of a method that there is not.
    """
    if not isinstance(cfg.trainings, DictConfig):
        raise ValueError(f"trainings has the ways of some methods, {{concept: sequential}}, got {cfg.trainings}")
    unknown = [str(key) for key in cfg.trainings if key not in cfg.bottleneck]
    if unknown:
        raise ValueError(f"trainings has {', '.join(unknown)}, but there are {', '.join(map(str, cfg.bottleneck))}")
    training = cfg.trainings.get(method, cfg.training)
    if training not in TRAININGS:
        raise ValueError(f"training is one of {', '.join(TRAININGS)}, got {training} for {method}")
    return training


def apart(model: Regularized, training: str) -> Regularized:
    """Returns a model whose concepts and whose head are trained together, or each by its own loss.

    joint: the head's gradient reaches the encoder (Koh et al. 2020, arXiv 2007.04612: L_y + beta L_c). sequential: it
    stops at the code, so that the encoder learns concepts alone, and the head reads what the encoder has found so far.
    independent: so too, and in training the head reads the true concepts.

    Args:
        model: with one concept layer.
        training: "joint", "sequential" or "independent".

    Raises:
        ValueError: not joint for a code that is more than its concepts, or that is no probability and independent.
    """
    return TRAININGS[training](model)


class TaughtByTruth(Regularized):
    """A `Regularized` whose head reads the true concepts in training, where they are known."""

    def forward(self, x: Tensor, *, target: Tensor | None = None, concepts: Tensor | None = None) -> RegularizedOutput:
        """Runs the model; in training behind an intervention on every concept."""
        if not self.training or concepts is None:
            return super().forward(x, target=target, concepts=concepts)
        truth = ConceptIntervention(~concepts.isnan(), torch.nan_to_num(concepts))
        with intervening({concept_layer(self.model): truth}):
            return super().forward(x, target=target, concepts=concepts)


def _sequential(model: Regularized) -> Regularized:
    layer = concept_layer(model)
    if layer.code_features != len(layer.concepts):
        raise ValueError(
            f"a code of {layer.code_features} features is more than its {len(layer.concepts)} concepts: what they "
            "leave out is learnt from the task alone, so train it jointly"
        )
    layer.decoder.register_forward_pre_hook(_detached)
    return model


def _detached(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.detach() for each in inputs)


def _independent(model: Regularized) -> Regularized:
    model = _sequential(model)
    if concept_layer(model).intervention_space != "probability":
        raise ValueError(
            "independent training gives the head true concepts, which are no logits: use code=probability or code=hard"
        )
    return TaughtByTruth(model.model, model.draws)


TRAININGS: dict[str, Callable[[Regularized], Regularized]] = {
    "joint": lambda model: model,
    "sequential": _sequential,
    "independent": _independent,
}
