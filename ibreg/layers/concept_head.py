"""What stands behind a concept code: nothing, a linear map whose weights people read, or a small network."""

from __future__ import annotations

from torch import nn

HEADS = ("identity", "linear", "mlp")

HIDDEN = 64  # units of the one hidden layer of an "mlp"


def check_head(head: str | None, out_features: int | None) -> None:
    """Raises a ValueError for a head that there is not, or a size that it cannot have."""
    if head is not None and head not in HEADS:
        raise ValueError(f"head is None or one of {', '.join(map(repr, HEADS))}, got {head!r}")
    if out_features is not None and out_features < 1:
        raise ValueError(f"out_features is the size of the output, at least 1, got {out_features}")


def build_head(head: str, code_features: int, out_features: int, *, device=None, dtype=None) -> nn.Module:
    """Returns the module from a code `(batch, code_features)` to the output `(batch, out_features)`.

    Raises:
        ValueError: an identity between different sizes.
    """
    if head == "identity":
        if out_features != code_features:
            raise ValueError(
                f"head='identity' puts the code out, which has {code_features} features: leave out_features="
                f"{out_features} away, or use head='linear'"
            )
        return nn.Identity()
    if head == "linear":
        return nn.Linear(code_features, out_features, device=device, dtype=dtype)
    return nn.Sequential(
        nn.Linear(code_features, HIDDEN, device=device, dtype=dtype),
        nn.ReLU(),
        nn.Linear(HIDDEN, out_features, device=device, dtype=dtype),
    )
