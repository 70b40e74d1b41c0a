"""The cut of the data that belongs to a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from omegaconf import DictConfig

Loaded = TypeVar("Loaded")


def load_cuts(cfg: DictConfig, load: Callable[..., Loaded]) -> dict[int, Loaded]:
    """Loads the data of every seed: each with a cut of its own, or with `split_by_seed=false` all with the same.

    Args:
        cfg: with `seeds`, `split_by_seed` and the options of `data`.
        load: takes these options, `split_seed` among them; called once for each cut.
    """
    cuts = {seed: cfg.data.get("split_seed", 0) + (seed if cfg.split_by_seed else 0) for seed in cfg.seeds}
    loaded = {cut: load(**{**cfg.data, "split_seed": cut}) for cut in set(cuts.values())}
    return {seed: loaded[cut] for seed, cut in cuts.items()}
