"""What a computation takes of a CUDA device's memory, in bytes that were requested.

The allocator hands out blocks of 512 bytes and upwards, and keeps what is freed; a count of blocks
hides small tensors and shows what other code left behind
(https://pytorch.org/docs/stable/generated/torch.cuda.memory_stats.html).
"""

from __future__ import annotations

import gc

import torch


def held_bytes(on: torch.device | str) -> int:
    """Bytes requested and in use at this moment: what only waits for Python's garbage collector is
    freed first, or its later end would hide as many bytes of what is measured against this."""
    gc.collect()
    torch.cuda.synchronize(on)
    return int(torch.cuda.memory_stats(on)["requested_bytes.all.current"])


def reset_peak(on: torch.device | str) -> None:
    """Count peaks from here on."""
    torch.cuda.synchronize(on)
    torch.cuda.reset_peak_memory_stats(on)


def peak_bytes(on: torch.device | str) -> int:
    """The most bytes that were requested and not freed at one time since `reset_peak`."""
    torch.cuda.synchronize(on)
    return int(torch.cuda.memory_stats(on)["requested_bytes.all.peak"])


def free_bytes(on: torch.device | str) -> int:
    """Bytes that this process can still get, its own freed blocks included."""
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(on)[0])
