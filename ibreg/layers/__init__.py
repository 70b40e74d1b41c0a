"""The bottlenecks, one file per family."""

from ibreg.layers.base import Bottleneck, BottleneckOutput
from ibreg.layers.cauchy_schwarz import CauchySchwarzBottleneck
from ibreg.layers.concept import ConceptBottleneck
from ibreg.layers.hsic import HSICBottleneck
from ibreg.layers.nonlinear import NonlinearBottleneck
from ibreg.layers.variational import VariationalBottleneck

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "CauchySchwarzBottleneck",
    "ConceptBottleneck",
    "HSICBottleneck",
    "NonlinearBottleneck",
    "VariationalBottleneck",
]
