"""A benchmark's peak memory: counted, so the same number each time."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from conformance.parity import device_memory

_ROUND = "conformance-round"
"""The name of a round in torch's profiler."""


def peak_memory(
    device: str, backbone: Any, prepare: Callable[[], Any], run: Callable[[Any], Any], rounds: int
) -> int:
    """Peak bytes allocated in a benchmark's first `rounds`, except the very first, with the model.

    Each round calls `run` on what `prepare` returns; the peak of `prepare` does not count. There
    must be at least two rounds, and none before them: then whatever a backbone keeps from one
    forward to the next, or creates once, is counted wherever it is kept.

    On a CUDA device these are the bytes that were asked for; the allocator's blocks depend on what
    it has handed out before. On a CPU this is what `backbone` holds, plus every later allocation
    that torch's profiler reports: those of torch's allocator on this thread and in backward passes.
    """
    gc.collect()
    if device != "cpu":
        on = torch.device(device)
        return max([_on_the_device(on, run, prepare) for _ in range(rounds)][1:])
    from torch.profiler import ProfilerActivity, profile, record_function

    before = held_storages(backbone)
    after: dict[int, int] = {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        for number in range(rounds):
            prepared = prepare()
            with record_function(_ROUND):
                run(prepared)
            if number == 0:
                after = held_storages(backbone)
    allocations, marks = _events(recording)
    # An address that is allocated again belonged to something that the first round freed, and the
    # profiler counts what came after it.
    anew = {address for _, address, size in allocations if size > 0}
    held = sum(size for address, size in before.items() if address in after and address not in anew)
    return held + _peak(allocations, marks[1:])


def held_storages(root: Any) -> dict[int, int]:
    """Address and size in bytes of all CPU tensors that `root` holds in attributes, containers and
    closures, however deep."""
    found: dict[int, int] = {}
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, ModuleType, str, bytes)):
            continue
        seen[id(one)] = one  # kept alive: otherwise another object might get its id
        if isinstance(one, torch.Tensor):
            waiting.extend(_parts(one))
            if one.device.type == "cpu" and one.layout is torch.strided:
                storage = one.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            waiting.extend(one)
        else:
            waiting.extend(_attributes(one))
    return found


def _on_the_device(on: torch.device, run: Callable[[Any], Any], prepare: Callable[[], Any]) -> int:
    prepared = prepare()
    device_memory.reset_peak(on)
    run(prepared)
    return device_memory.peak_bytes(on)


def _parts(tensor: torch.Tensor) -> Iterator[Any]:
    """What a tensor holds besides its storage: its gradient, or the tensors that it is made of."""
    if tensor.is_leaf and tensor.grad is not None:
        yield tensor.grad
    if tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())


def _attributes(one: Any) -> Iterator[Any]:
    yield from getattr(one, "__dict__", {}).values()
    for slots in (vars(kind).get("__slots__", ()) for kind in type(one).__mro__):
        for name in (slots,) if isinstance(slots, str) else slots:
            with suppress(AttributeError):
                yield getattr(one, name)
    if isinstance(one, partial):
        yield from (one.func, one.args, one.keywords)
    elif isinstance(one, MethodType):
        yield from (one.__self__, one.__func__)
    elif isinstance(one, FunctionType):
        yield from (one.__defaults__, one.__kwdefaults__)
        for cell in one.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                yield cell.cell_contents


def _events(recording: Any) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Time, address and size (negative: freed) of each allocation in torch's profile, and the
    beginning and end of each round."""
    from torch._C._profiler import _EventType

    allocations, begun, ended = [], [], []
    waiting = list(recording.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            allocations.append(
                (event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size)
            )
        elif event.name == _ROUND:
            begun.append(event.start_time_ns)
            ended.append(event.end_time_ns)
    return allocations, list(zip(sorted(begun), sorted(ended), strict=True))


def _peak(allocations: list[tuple[int, int, int]], rounds: list[tuple[int, int]]) -> int:
    """The largest number of bytes allocated at once during `rounds`."""
    live: dict[int, int] = {}
    held = peak = 0
    # Blocks come and go between rounds too, so an allocation of nothing at the beginning of each
    # round samples what is held by then.
    for at, address, size in sorted([*allocations, *((begin, 0, 0) for begin, _ in rounds)]):
        held -= live.pop(address, 0)
        if size > 0:
            live[address] = size
            held += size
        if any(begin <= at <= end for begin, end in rounds):
            peak = max(peak, held)
    return peak
