"""The bottlenecks, one file per family."""

from ibreg.layers.base import Bottleneck, BottleneckOutput
from ibreg.layers.cauchy_schwarz import CauchySchwarzBottleneck
from ibreg.layers.concept import ConceptBottleneck
from ibreg.layers.concept_embedding import ConceptEmbeddingBottleneck
from ibreg.layers.concept_layer import ConceptIntervention, ConceptLayer, ConceptState
from ibreg.layers.hsic import HSICBottleneck
from ibreg.layers.nonlinear import NonlinearBottleneck
from ibreg.layers.post_hoc_concept import PostHocConceptBottleneck
from ibreg.layers.probabilistic_concept import ProbabilisticConceptBottleneck
from ibreg.layers.stochastic_concept import StochasticConceptBottleneck
from ibreg.layers.variational import VariationalBottleneck

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "CauchySchwarzBottleneck",
    "ConceptBottleneck",
    "ConceptEmbeddingBottleneck",
    "ConceptIntervention",
    "ConceptLayer",
    "ConceptState",
    "HSICBottleneck",
    "NonlinearBottleneck",
    "PostHocConceptBottleneck",
    "ProbabilisticConceptBottleneck",
    "StochasticConceptBottleneck",
    "VariationalBottleneck",
]
