"""A device that is not there: tensors that lie on it hold real values in the computer's memory.

torch lets Python be a backend (`_setup_privateuseone_for_python_backend`, torch 2.9): a tensor on
device `emulated` is a shell around one on the CPU, and every operation runs on what is inside. So
results are those of the CPU to the bit, gradients flow, and placement is enforced as CUDA enforces
it: an operation on tensors of two devices raises. Requested bytes are counted, the most at one
time as well, and a size can be set beyond which memory is out.

It shows what a CUDA device would on placement, control flow and the order of calls; nothing about
kernels, rounding or time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "emulated"
_ACROSS = {"aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense"}
"""Operations that may be given tensors of two devices."""
_INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
"""Operations whose indices may lie on the CPU."""


class Memory:
    """The device's memory, in bytes that were requested."""

    def __init__(self) -> None:
        self.current = 0
        self.peak = 0
        self.total = 1 << 40
        self._known: set[int] = set()

    def take(self, inside: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed; of a view there is nothing to count."""
        storage = inside.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        if self.current + size > self.total:
            raise torch.cuda.OutOfMemoryError(f"tried to allocate {size} bytes")
        self._known.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size

    def stats(self, on: Any = None) -> dict[str, int]:
        return {
            "requested_bytes.all.current": self.current,
            "requested_bytes.all.peak": self.peak,
        }

    def reset_peak(self, on: Any = None) -> None:
        self.peak = self.current


MEMORY = Memory()


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device; `inside` holds its values."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> OnDevice:
        MEMORY.take(inside)
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            layout=inside.layout,
            device=torch.device(NAME, 0),
        )
        made.inside = inside
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inside!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _get_data(self: OnDevice) -> torch.Tensor:
    return self.detach()


def _set_data(self: OnDevice, value: OnDevice) -> None:
    torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
    self.inside = value.inside


OnDevice.data = property(_get_data, _set_data)  # type: ignore[assignment]


class _Factories(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees operations without a tensor of the device: those that make one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """Functions that the other mode does not reach, or sees in parts: tensors of data are made on
    the CPU and moved; attention without gradients is one operation, by the CPU's kernel."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is functional.scaled_dot_product_attention:
            tensors = [
                one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)
            ]
            _check_places("scaled_dot_product_attention", args, kwargs)
            learns = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
            if isinstance(tensors[0], OnDevice) and not learns:
                if torch.is_autocast_enabled(NAME):
                    args, kwargs = tree_map(_cast, (args, kwargs))
                return OnDevice(func(*_inside(args), **_inside(kwargs)))
        return func(*args, **kwargs)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _check_places(func.name(), args, kwargs)
    asked = kwargs.get("device")
    inner = dict(kwargs)
    if _is_there(asked):
        inner["device"] = torch.device("cpu")
        inner.pop("pin_memory", None)
    made = func(*_inside(args), **_inside(inner))
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    there = _is_there(asked) or (asked is None and any(isinstance(t, OnDevice) for t in tensors))
    if not there:
        return made
    wrapped = tree_map(lambda one: OnDevice(one) if isinstance(one, torch.Tensor) else one, made)
    if not any(isinstance(one, OnDevice) for one in tensors):
        return wrapped
    if func.name().partition(".")[0] == "aten::copy_":
        return args[0]
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _inside(values: Any) -> Any:
    return tree_map(lambda one: one.inside if isinstance(one, OnDevice) else one, values)


def _check_places(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    base = name.partition(".")[0]
    if base in _ACROSS:
        return
    looked_at = args[:1] if name in _INDEXING or base in _INDEXING else args
    tensors = [one for one in tree_flatten((looked_at, kwargs))[0] if isinstance(one, torch.Tensor)]
    there = any(isinstance(one, OnDevice) for one in tensors)
    elsewhere = [one for one in tensors if not isinstance(one, OnDevice) and one.dim() > 0]
    if there and elsewhere:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and {elsewhere[0].device}! (in {name})"
        )


def register() -> None:
    """Make the device known to torch, once in a process and before its first backward pass."""
    if _LIBRARIES:
        return
    from torch.utils import backend_registration as registration

    class Module(registration._DummyBackendModule):  # type: ignore[misc, name-defined]
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    _LIBRARIES.append(torch.library.Library("_", "IMPL"))
    _LIBRARIES[-1].fallback(torch.library.fallthrough_kernel, dispatch_key=_AUTOCAST)
    _LIBRARIES.append(torch.library.Library("aten", "IMPL", _AUTOCAST))
    for name in _CAST:
        _LIBRARIES[-1].impl(name, _casting(getattr(torch.ops.aten, name).default))


def _casting(operation: Any) -> Callable[..., Any]:
    """The operation under autocast: floating-point inputs in its dtype."""

    def run(*args: Any, **kwargs: Any) -> Any:
        key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST))
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*tree_map(_cast, args), **tree_map(_cast, kwargs))

    return run


def _cast(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(torch.get_autocast_dtype(NAME)) if floating else value


_LIBRARIES: list[Any] = []
_AUTOCAST = "AutocastPrivateUse1"
_CAST = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
"""What autocast computes in half precision."""


def is_possible() -> bool:
    """Whether the installed torch lets Python be a backend."""
    from torch.utils import backend_registration

    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@contextmanager
def emulated_device(total: int = 1 << 40) -> Iterator[torch.device]:
    """The device while the body runs, with `total` bytes of memory; what asks `torch.cuda` about
    memory and synchronisation is answered for it."""
    register()
    MEMORY.total = MEMORY.current + total
    MEMORY.reset_peak()
    answers: dict[str, Callable[..., Any]] = {
        "memory_stats": MEMORY.stats,
        "reset_peak_memory_stats": MEMORY.reset_peak,
        "synchronize": lambda on=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda on=None: (MEMORY.total - MEMORY.current, total),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(_Factories())
        stack.enter_context(_Functions())
        yield torch.device(NAME, 0)
    MEMORY.total = 1 << 40
