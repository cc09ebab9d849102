"""The emulated device itself: it computes as the CPU does, and enforces what CUDA enforces."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn import functional

from tests.gpu.emulated import MEMORY, NAME, emulated_device

pytestmark = pytest.mark.usefixtures("emulation")


def test_values_and_gradients_are_the_cpus() -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    here = functional.gelu(linear(x)).square().sum()
    here.backward()
    expected = linear.weight.grad
    with emulated_device() as on:
        moved = torch.nn.Linear(4, 3)
        moved.load_state_dict(linear.state_dict())
        moved.to(on)
        there = functional.gelu(moved(x.to(on))).square().sum()
        there.backward()
        gradient = moved.weight.grad
        assert gradient is not None
        assert expected is not None
        assert there.device.type == gradient.device.type == NAME
        assert torch.equal(there.detach().cpu(), here.detach())
        assert torch.equal(gradient.cpu(), expected)


def test_two_devices_in_one_operation_are_refused() -> None:
    with emulated_device() as on:
        there, here = torch.ones(3, device=on), torch.ones(3)
        with pytest.raises(RuntimeError, match=r"same device.*emulated:0 and cpu"):
            _ = there + here
        assert (there + torch.tensor(1.0)).device == on, "numbers of no axes may lie anywhere"
        assert there[torch.tensor([0, 1])].device == on, "so may indices"
        here.copy_(there)


def test_in_place_operations_views_and_casts() -> None:
    with emulated_device() as on:
        x = torch.zeros(2, 3, device=on)
        x[0].add_(1)
        x[:, 1] = 5
        assert x.cpu().tolist() == [[1, 5, 1], [0, 5, 0]]
        parameter = torch.nn.Parameter(torch.ones(2, device=on))
        parameter.data = parameter.data.to(torch.bfloat16)
        assert (parameter.dtype, parameter.device) == (torch.bfloat16, on)
        assert (parameter * 2).cpu().tolist() == [2, 2]


def test_autocast() -> None:
    with emulated_device() as on, torch.autocast(NAME, dtype=torch.bfloat16):
        wide, half = (torch.ones(1, 2, 3, device=on, dtype=kind) for kind in _KINDS)
        assert functional.linear(wide, wide[0]).dtype is torch.bfloat16
        with torch.no_grad():
            attended = functional.scaled_dot_product_attention(wide, wide, half)
        assert attended.dtype is torch.bfloat16


_KINDS = (torch.float32, torch.bfloat16)


def test_memory_is_counted_and_ends() -> None:
    gc.collect()
    with emulated_device(total=10_000) as on:
        before = MEMORY.current
        kept = torch.zeros(500, device=on)
        _ = kept.view(5, 100)
        assert MEMORY.current == before + 2000
        _ = torch.zeros(1000, device=on)
        del _
        assert (MEMORY.current, MEMORY.peak) == (before + 2000, before + 6000)
        torch.cuda.reset_peak_memory_stats(on)
        assert torch.cuda.memory_stats(on)["requested_bytes.all.peak"] == before + 2000
        assert torch.cuda.mem_get_info(on)[0] == 8000
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.zeros(10_000, device=on)
