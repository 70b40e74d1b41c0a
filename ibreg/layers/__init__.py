"""The bottlenecks, one file per family."""

from ibreg.layers.base import Bottleneck, BottleneckOutput
from ibreg.layers.cauchy_schwarz import CauchySchwarzBottleneck
from ibreg.layers.codebook import CodebookBottleneck
from ibreg.layers.distance_aware import DistanceAwareBottleneck
from ibreg.layers.hsic import HSICBottleneck
from ibreg.layers.key_value import KeyValueBottleneck
from ibreg.layers.nonlinear import NonlinearBottleneck
from ibreg.layers.variational import VariationalBottleneck

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "CauchySchwarzBottleneck",
    "CodebookBottleneck",
    "DistanceAwareBottleneck",
    "HSICBottleneck",
    "KeyValueBottleneck",
    "NonlinearBottleneck",
    "VariationalBottleneck",
]
