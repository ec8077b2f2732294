"""The device and the precision that both stages compute with."""

from __future__ import annotations

import os

import torch


def choose_device() -> torch.device:
    """The processor, or the GPU; of several, under torchrun, the one of this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The named precision; of "auto" bfloat16 where the hardware multiplies in it.

    A GPU that does not (V100, T4: CUDA emulates bfloat16 there, slowly) takes float16, a processor
    float32. Training in float16 scales its loss.
    """
    if precision != "auto":
        named: torch.dtype = getattr(torch, precision)
        return named
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
