"""The bottleneck layers."""

from ibreg.layers.base import Bottleneck, BottleneckOutput
from ibreg.layers.codebook import CodebookBottleneck, CodeIntervention
from ibreg.layers.concept.base import ConceptIntervention
from ibreg.layers.concept.concept import ConceptBottleneck
from ibreg.layers.concept.concept_embedding import ConceptEmbeddingBottleneck
from ibreg.layers.concept.post_hoc_concept import PostHocConceptBottleneck
from ibreg.layers.concept.probabilistic_concept import ProbabilisticConceptBottleneck
from ibreg.layers.concept.stochastic_concept import StochasticConceptBottleneck
from ibreg.layers.distance_aware import DistanceAwareBottleneck
from ibreg.layers.dropout import DropoutBottleneck
from ibreg.layers.gaussian_channel import GaussianChannelBottleneck
from ibreg.layers.kernel.cauchy_schwarz import CauchySchwarzBottleneck
from ibreg.layers.kernel.hsic import HSICBottleneck
from ibreg.layers.key_value.key_value import KeyValueBottleneck
from ibreg.layers.nonlinear import NonlinearBottleneck
from ibreg.layers.variational import VariationalBottleneck

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "CauchySchwarzBottleneck",
    "CodeIntervention",
    "CodebookBottleneck",
    "ConceptBottleneck",
    "ConceptEmbeddingBottleneck",
    "ConceptIntervention",
    "DistanceAwareBottleneck",
    "DropoutBottleneck",
    "GaussianChannelBottleneck",
    "HSICBottleneck",
    "KeyValueBottleneck",
    "NonlinearBottleneck",
    "PostHocConceptBottleneck",
    "ProbabilisticConceptBottleneck",
    "StochasticConceptBottleneck",
    "VariationalBottleneck",
]
