"""Task losses that torch does not have; `ibreg.Penalized` takes them as any other."""

from ibreg.losses.conditional_cauchy_schwarz import ConditionalCauchySchwarz

__all__ = ["ConditionalCauchySchwarz"]
