"""Configs of checkpoints in, the dtype that serves them fastest on this machine out."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedConfig


def fastest_dtype(configs: Iterable[PreTrainedConfig], device: str = "cpu") -> torch.dtype:
    """bfloat16 if the device has matrix products for it in hardware.

    Otherwise float32 on a CPU and float16 on a GPU. Weights trained without an encoder mask
    (official checkpoints) stay in float32: they are to give the reference's numbers, and their mask
    value of -10000 is too coarse in bfloat16.
    """
    if any(getattr(config, "encoder_mask", "union") == "none" for config in configs):
        return torch.float32
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    processor = torch.cpu.get_capabilities()
    in_hardware = processor.get("avx512_bf16") or processor.get("amx_bf16")
    return torch.bfloat16 if in_hardware else torch.float32
