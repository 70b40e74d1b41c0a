"""The accelerator that a recipe trains on: device, precision, processes, tracker, as configured."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, DistributedType, FullyShardedDataParallelPlugin, LoggerType

from ibreg.runs.config.section import Count, Share, one_of
from ibreg.runs.folder import FolderConfig

TRACKERS = ("none", *map(str, LoggerType.list()))


class AcceleratorConfig(FolderConfig):
    """Devices, precision and trackers.

    Attributes:
        device: auto takes an accelerator if there is one.
        precision: of the forward pass.
        accumulate: batches per optimizer step.
        ema: decay per step of the moving average of the weights that is evaluated; 0: none.
        tracker: a tracker of accelerate.
    """

    device: Literal["auto", "cpu"]
    precision: Literal["no", "bf16", "fp16"]
    accumulate: Count
    ema: Share
    tracker: Annotated[str, *one_of(TRACKERS)]


def build_accelerator(cfg: AcceleratorConfig) -> Accelerator:
    """Builds the accelerator of a run, for one process or several, on a CPU or elsewhere.

    Args:
        cfg: the recipe's configuration.

    Raises:
        ValueError: If the device does not have the precision, the tracker's package is not installed, or FSDP does not
            support what is configured.
    """
    tracker = cfg.tracker
    if tracker not in ("none", "all", *map(str, get_available_trackers())):
        raise ValueError(f"tracker={tracker} needs a package that is not installed: pip install {tracker}, or use none")
    if sharded := os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # Every process builds the model itself: sending it, the launcher's default, fails on buffers such as beta.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator = Accelerator(
        cpu=cfg.device == "cpu",
        mixed_precision=cfg.precision,
        gradient_accumulation_steps=cfg.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=None if tracker == "none" else tracker,
        project_dir=cfg.output_dir,
    )
    if cfg.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision=fp16 needs an accelerator: on the CPU use bf16 or no")
    if sharded and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # On CPUs accelerate ignores FSDP silently, although torch and the rest of accelerate support it.
        plugin = accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if cfg.precision != "no":
            plugin.set_mixed_precision(cfg.precision)
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ValueError("FSDP's first version is not supported: accelerate launch --use_fsdp --fsdp_version 2 ...")
        if cfg.ema:
            raise ValueError(
                f"ema={cfg.ema} averages whole weights, but with FSDP a process holds shards of them: use ema=0"
            )
        plugin: Any = accelerator.state.fsdp_plugin
        if policy := plugin.mixed_precision_policy:
            # Losses and penalties are float32, as with autocast; accelerate would round every output of a model.
            plugin.mixed_precision_policy = replace(policy, output_dtype=torch.float32)
    return accelerator
