"""Information-bottleneck regularizers for PyTorch models: swap one in, keep your training loop."""

from ibreg import functional, layers, losses, schedules
from ibreg.layers import *  # noqa: F403 - its __all__ is the one list of the layers
from ibreg.layers.concept.specification import Concepts
from ibreg.optimization import parameter_groups
from ibreg.prediction import predict, uncertainty
from ibreg.registry import build, names, register
from ibreg.regularized import Penalized, Regularized, RegularizedOutput, bottlenecks
from ibreg.saving import load_bottlenecks, save_bottlenecks
from ibreg.surgery.injection import candidates, eject, inject
from ibreg.surgery.unlearning import unlearn
from ibreg.version import __version__ as __version__

__all__ = [
    "Concepts",
    "Penalized",
    "Regularized",
    "RegularizedOutput",
    "bottlenecks",
    "build",
    "candidates",
    "eject",
    "functional",
    "inject",
    "load_bottlenecks",
    "losses",
    "names",
    "parameter_groups",
    "predict",
    "register",
    "save_bottlenecks",
    "schedules",
    "uncertainty",
    "unlearn",
]
__all__ += layers.__all__
