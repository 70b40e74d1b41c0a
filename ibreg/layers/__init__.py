"""The bottlenecks, one file per family."""

from ibreg.layers.base import Bottleneck, BottleneckOutput
from ibreg.layers.variational import VariationalBottleneck

__all__ = ["Bottleneck", "BottleneckOutput", "VariationalBottleneck"]
