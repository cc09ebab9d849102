"""What a constructor may not change permanently: dtype, grad mode, device, how products are
computed, environment, working directory, signal handlers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from conformance.parity.precision import float32_settings, restore_float32_settings

_SIGNALS = tuple(
    name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR2") if hasattr(signal, name)
)
"""Signals that a Python process may handle as it likes; the others belong to the interpreter or to
the runner."""
_VARIABLE = "the environment variable "
_HANDLER = "the handler of "


@contextmanager
def restored() -> Iterator[dict[str, str]]:
    """Run the body, then restore the process, whether it raises or not.

    The yielded dictionary is filled at the end with each thing that the body changed: its name, and
    a phrase with the old and the new value. Standard streams are reported, but not restored.
    """
    before, changes, precision = _state(), dict[str, str](), float32_settings()
    try:
        yield changes
    finally:
        after = _state()
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                # Variables may hold secrets: only their names are reported.
                told = name.startswith(_VARIABLE)
                was, now = (_told(state.get(name)) for state in (before, after))
                changes[name] = name if told else f"{name} from {was} to {now}"
        _put_back(before, changes)
        if float32_settings() != precision:
            restore_float32_settings(precision)


@contextmanager
def unusual_handlers() -> Iterator[None]:
    """Install handlers that no constructor would choose.

    Otherwise one that sets the handler already in force (under `nohup` interrupts are ignored from
    the start) would seem to have changed nothing.
    """
    # Only the main thread may set handlers.
    handled = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {name: signal.getsignal(getattr(signal, name)) for name in handled}
    try:
        for name in handled:
            signal.signal(getattr(signal, name), _interrupted)
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler or signal.SIG_DFL)


def _interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _state() -> dict[str, Any]:
    return {
        "the default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "the default device": str(torch.get_default_device())
        if hasattr(torch, "get_default_device")
        else "cpu",
        "the algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        **{name: getattr(owner, flag) for name, (owner, flag) in _flags().items()},
        **float32_settings(),
        "the working directory": os.getcwd(),
        **{
            f"the standard {name}": _open_file(number)
            for number, name in enumerate(("input", "output", "error"))
        },
        **{_VARIABLE + name: value for name, value in os.environ.items()},
        **{_HANDLER + name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS},
    }


def _flags() -> dict[str, tuple[Any, str]]:
    """Flags of torch that change how every model of the process is computed: by a name to show, the
    object and its attribute."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "cuDNN": (cudnn, "enabled"),
        "cuDNN's search for fast algorithms": (cudnn, "benchmark"),
        "cuDNN's determinism": (cudnn, "deterministic"),
        "partial sums in bfloat16": (matmul, "allow_bf16_reduced_precision_reduction"),
        "partial sums in float16": (matmul, "allow_fp16_reduced_precision_reduction"),
    }


def _open_file(descriptor: int) -> str:
    try:
        opened = os.fstat(descriptor)
    except OSError:
        return "closed"
    return f"file {opened.st_ino} on device {opened.st_dev}"


def _put_back(before: Mapping[str, Any], changes: Mapping[str, str]) -> None:
    for name in changes:
        value: Any = before.get(name)
        if name == "the default dtype":
            torch.set_default_dtype(value)
        elif name == "grad mode":
            torch.set_grad_enabled(value)
        elif name == "the default device":
            torch.set_default_device(None if value == "cpu" else value)
        elif name == "the algorithms":
            torch.use_deterministic_algorithms(value[0], warn_only=value[1])
        elif name in _flags():
            setattr(*_flags()[name], value)
        elif name == "the working directory":
            os.chdir(value)
        elif name.startswith(_VARIABLE):
            variable = name.removeprefix(_VARIABLE)
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
        # Only the main thread may set handlers; None is a handler that was not set from Python, and
        # cannot be.
        elif name.startswith(_HANDLER) and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, name.removeprefix(_HANDLER)), value or signal.SIG_DFL)


def _told(value: Any) -> str:
    return getattr(value, "__qualname__", None) or str(value)
