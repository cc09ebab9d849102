"""What a backbone may not change permanently in its process: every setting of torch, NumPy, Python
and logging that can be read, the environment, the working directory, signal handlers.

Settings are found rather than listed where the library has a way to list them. *Mild* ones change
what a process prints or how far it gets, not what the rest of it computes.
"""

from __future__ import annotations

import contextlib
import copy
import decimal
import functools
import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from conformance.parity.precision import float32_settings, restore_float32_settings
from conformance.subject.library_code import TORCH_MODULES

_SIGNALS = tuple(
    name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR2") if hasattr(signal, name)
)
"""Signals that a Python process may handle as it likes; the others belong to the interpreter or to
the runner."""
_THREADS = "torch's number of threads"
_CODE = "torch's own code"
_METHODS = ("__init__", "reset_parameters", "forward", "__call__")
_MODULES: Mapping[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in TORCH_MODULES
}
_BY_TORCH = frozenset({"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"})
"""Variables that torch sets when its compiler is first imported, which a forward may do."""
_HOSTS_LOGGER = "a_host.training"
"""A logger that no library has, as a host makes one for its log."""
_VARIABLE = "the environment variable "
_HANDLER = "the handler of "


@dataclass(frozen=True)
class _Setting:
    """One setting: how to read it, how to write it back, and a value that nobody would choose."""

    read: Callable[[], Any]
    write: Callable[[Any], Any] | None = None
    unusual: Callable[[Any], Any] | None = None
    """From the value in force. None for a setting that building may rely on."""
    mild: bool = False


@contextmanager
def restored() -> Iterator[dict[str, str]]:
    """Run the body, then restore the process, whether it raises or not.

    The yielded dictionary is filled at the end with each thing that the body changed: its name, and
    a phrase with the old and the new value. What cannot be written back is reported all the same.
    """
    settings = _settings()
    before, changes, precision = _state(settings), dict[str, str](), float32_settings()
    try:
        with _thread_counts_set() as counts:
            yield changes
    finally:
        after = _state(settings)
        if len(counts) == 1:  # a second call puts the first one's number back, or shows by itself
            changes[_THREADS] = f"{_THREADS} from {before[_THREADS]} to {counts[-1]}"
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                # Variables may hold secrets: only their names are reported.
                told = name.startswith(_VARIABLE)
                was, now = (_told(state.get(name)) for state in (before, after))
                changes[name] = name if told else f"{name} from {was} to {now}"
                if name == _CODE:
                    changes[name] = f"{name}: {_differing(before[name], after[name])}"
        _put_back(settings, before, changes)
        if float32_settings() != precision:
            restore_float32_settings(precision)


def is_mild(name: str) -> bool:
    """Whether a changed thing, by the name under which `restored` reports it, leaves what the rest
    of the process computes as it was."""
    setting = _settings().get(name)
    return setting is not None and setting.mild


@contextmanager
def unusual_settings() -> Iterator[None]:
    """Give settings values, and signals handlers, that no constructor would choose.

    Otherwise one that sets what is in force already (under `nohup` interrupts are ignored from the
    start) would seem to have changed nothing.
    """
    settings, precision = _settings(), float32_settings()
    before = {name: setting.read() for name, setting in settings.items() if setting.unusual}
    with _unusual_handlers():
        try:
            for name, value in before.items():
                _write(settings[name], settings[name].unusual(value))  # type: ignore[misc]
            torch.set_float32_matmul_precision("medium")
            yield
        finally:
            for name, value in before.items():
                _write(settings[name], value)
            restore_float32_settings(precision)


@contextmanager
def _thread_counts_set() -> Iterator[list[int]]:
    """The numbers of threads that the body asks of torch. An unusual number in force would show
    them too, but computing with it hangs in a process that was forked from one with threads."""
    counts: list[int] = []
    set_num_threads = torch.set_num_threads

    def noted(nthreads: int) -> None:
        counts.append(nthreads)
        set_num_threads(nthreads)

    torch.set_num_threads = noted
    try:
        yield counts
    finally:
        torch.set_num_threads = set_num_threads


@contextmanager
def _unusual_handlers() -> Iterator[None]:
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


def _state(settings: Mapping[str, _Setting]) -> dict[str, Any]:
    return {
        **{name: setting.read() for name, setting in settings.items()},
        **float32_settings(),
        **{
            f"the standard {name}": _open_file(number)
            for number, name in enumerate(("input", "output", "error"))
        },
        **{_VARIABLE + n: value for n, value in os.environ.items() if n not in _BY_TORCH},
        **{_HANDLER + name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS},
    }


def _settings() -> dict[str, _Setting]:
    """Every setting by a name to show."""
    return {
        **_of_torch(),
        **_of_backends(),
        **_of_attention(),
        **_of_python(),
        **_mild(),
    }


def _of_torch() -> dict[str, _Setting]:
    return {
        "the default dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype),
        "grad mode": _Setting(torch.is_grad_enabled, torch.set_grad_enabled),
        "inference mode": _Setting(torch.is_inference_mode_enabled),
        "the default device": _Setting(
            lambda: (
                str(torch.get_default_device()) if hasattr(torch, "get_default_device") else "cpu"
            ),
            lambda value: torch.set_default_device(None if value == "cpu" else value),
        ),
        "the algorithms": _Setting(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        _THREADS: _Setting(torch.get_num_threads, torch.set_num_threads),
        _CODE: _Setting(_Code, _put_code_back),
        "torch's number of interop threads": _Setting(torch.get_num_interop_threads),
        "anomaly detection": _Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        **(_autocast() if hasattr(torch, "get_autocast_dtype") else {}),
        "flushing of denormal numbers": _Setting(
            # The smallest normal number, halved: arithmetic alone tells.
            lambda: bool((torch.tensor(2.0**-126) * 0.5) == 0),
            torch.set_flush_denormal,
        ),
    }


def _autocast() -> dict[str, _Setting]:
    found = {}
    for device in ("cpu", "cuda"):
        found[f"autocast on {device}"] = _Setting(
            functools.partial(torch.is_autocast_enabled, device),
            functools.partial(torch.set_autocast_enabled, device),
        )
        found[f"autocast's dtype on {device}"] = _Setting(
            functools.partial(torch.get_autocast_dtype, device),
            functools.partial(torch.set_autocast_dtype, device),
        )
    return found


def _of_backends() -> dict[str, _Setting]:
    """The flags of `torch.backends`: attributes of its modules that are properties, and those of
    CUDA's products, which answer by name."""
    found = {}
    for name, module in vars(torch.backends).items():
        if not isinstance(module, ModuleType):
            continue
        for cls in type(module).__mro__:
            for flag, declared in vars(cls).items():
                if type(declared).__name__ == "ContextProp" and _is_a_flag(module, flag):
                    found[f"torch.backends.{name}.{flag}"] = _flag(module, flag)
    matmul = torch.backends.cuda.matmul
    for flag in (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ):
        if _is_a_flag(matmul, flag):
            found[f"torch.backends.cuda.matmul.{flag}"] = _flag(matmul, flag)
    return found


def _is_a_flag(owner: Any, name: str) -> bool:
    # How float32 products are computed is read and put back by `conformance.parity.precision`.
    if name in ("allow_tf32", "fp32_precision"):
        return False
    try:
        return isinstance(getattr(owner, name), (bool, int, str))
    except Exception:  # Without such a device some cannot be read.
        return False


def _flag(owner: Any, name: str) -> _Setting:
    return _Setting(
        lambda: getattr(owner, name),
        lambda value: setattr(owner, name, value),
        (lambda value: not value) if isinstance(getattr(owner, name), bool) else None,
    )


def _of_attention() -> dict[str, _Setting]:
    """Which kernels scaled dot-product attention may use."""
    cuda = torch.backends.cuda
    kernels = [name[: -len("_enabled")] for name in dir(cuda) if name.endswith("_sdp_enabled")]
    return {
        f"attention by {kernel}": _Setting(
            getattr(cuda, f"{kernel}_enabled"), getattr(cuda, f"enable_{kernel}")
        )
        for kernel in kernels
        if hasattr(cuda, f"enable_{kernel}")
    }


def _owners() -> dict[str, Any]:
    """The classes of `torch.nn` and the modules of functions behind them, by name."""
    layers = {name: one for name, one in vars(torch.nn).items() if isinstance(one, type)}
    return {**layers, **_MODULES}


class _Code:
    """What modules start from that are made now: the methods of torch's own layers, and the
    functions of torch, those that initialise layers among them."""

    def __init__(self) -> None:
        self.members = {owner: dict(vars(one)) for owner, one in _owners().items()}

    def differing(self, other: _Code) -> list[tuple[str, str]]:
        """Owner and name of each function or method that is not the same in both."""
        found = []
        for owner, before in self.members.items():
            after = other.members.get(owner, {})
            for name in {**before, **after} if owner in _MODULES else _METHODS:
                was, now = (_unwrapped(members.get(name)) for members in (before, after))
                # `torch.Storage` is what the default dtype makes it.
                if was is not now and any(
                    callable(o) and not isinstance(o, type) for o in (was, now)
                ):
                    found.append((owner, name))
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and not self.differing(other)


def _put_code_back(code: _Code) -> None:
    owners = _owners()
    for owner, name in code.differing(_Code()):
        if name in code.members[owner]:
            setattr(owners[owner], name, code.members[owner][name])
        else:
            delattr(owners[owner], name)


def _unwrapped(value: Any) -> Any:
    """What torch wraps itself while it is used (its compiler, `torch.manual_seed`) is as it was."""
    while (
        isinstance(value, FunctionType)
        and str(value.__globals__.get("__name__")).startswith("torch.")
        and hasattr(value, "__wrapped__")
    ):
        value = value.__wrapped__
    return value


def _of_python() -> dict[str, _Setting]:
    return {
        "the working directory": _Setting(os.getcwd, os.chdir),
        "the mask of new files' permissions": _Setting(_umask, os.umask, lambda mask: mask ^ 0o001),
        "the locale": _Setting(
            lambda: locale.setlocale(locale.LC_ALL),
            lambda value: locale.setlocale(locale.LC_ALL, value),
        ),
        "the time zone": _Setting(lambda: time.tzname),
        "the resource limits": _Setting(_resource_limits),
        "the processor cores that may be used": _Setting(_cores, _set_cores),
        "the process's priority": _Setting(lambda: os.nice(0) if hasattr(os, "nice") else 0),
        "the default timeout of sockets": _Setting(
            socket.getdefaulttimeout, socket.setdefaulttimeout, lambda _: 1234.5
        ),
        "the context of decimals": _Setting(
            lambda: (decimal.getcontext().prec, decimal.getcontext().rounding),
            _set_decimal_context,
            lambda value: (value[0] + 1, value[1]),
        ),
        "sys.stdout": _attribute(sys, "stdout"),
        "sys.stderr": _attribute(sys, "stderr"),
        "sys.excepthook": _attribute(sys, "excepthook"),
        "threading.excepthook": _attribute(threading, "excepthook"),
        "NumPy's handling of errors": _Setting(
            np.geterr,
            lambda value: np.seterr(**value),
            lambda value: dict.fromkeys(value, "print"),
        ),
        "the root logger": _Setting(
            lambda: (logging.root.level, tuple(logging.root.handlers)),
            _set_root_logger,
            lambda value: (logging.ERROR + 1, value[1]),
        ),
        "a host's logger": _Setting(
            lambda: _told_of_logger(logging.getLogger(_HOSTS_LOGGER)),
            lambda value: vars(logging.getLogger(_HOSTS_LOGGER)).update(value),
            lambda value: {**value, "level": logging.INFO + 3, "handlers": [logging.NullHandler()]},
        ),
        "the level below which logging is disabled": _Setting(
            lambda: logging.root.manager.disable, logging.disable, lambda level: level + 1
        ),
    }


def _mild() -> dict[str, _Setting]:
    from transformers.utils import logging as transformers_logging

    def mild(read: Any, write: Any = None, unusual: Any = None) -> _Setting:
        return _Setting(read, write, unusual, mild=True)

    return {
        "sys.path": mild(
            lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)
        ),
        "the recursion limit": mild(
            sys.getrecursionlimit, sys.setrecursionlimit, lambda limit: limit + 123
        ),
        "the switch interval of threads": mild(
            sys.getswitchinterval, sys.setswitchinterval, lambda seconds: seconds * 1.5
        ),
        "the stack size of threads": mild(threading.stack_size, threading.stack_size),
        "sys.displayhook": _attribute(sys, "displayhook", mild=True),
        "garbage collection": mild(
            lambda: (gc.isenabled(), gc.get_threshold()),
            _set_garbage_collection,
            lambda value: (value[0], (value[1][0] + 1, *value[1][1:])),
        ),
        "NumPy's print options": mild(
            np.get_printoptions,
            lambda value: np.set_printoptions(**value),
            lambda value: {**value, "precision": 5},
        ),
        "transformers' verbosity": mild(
            transformers_logging.get_verbosity,
            transformers_logging.set_verbosity,
            lambda level: level + 1,
        ),
        "the start method of processes": mild(
            lambda: multiprocessing.get_start_method(allow_none=True),
            lambda value: multiprocessing.set_start_method(value, force=True),
        ),
        "how tensors are shared between processes": mild(
            torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy
        ),
    }


def _attribute(owner: Any, name: str, *, mild: bool = False) -> _Setting:
    return _Setting(
        lambda: getattr(owner, name), lambda value: setattr(owner, name, value), mild=mild
    )


def _umask() -> int:
    # It can only be read by being set.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cores() -> frozenset[int]:
    """Empty where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _set_cores(cores: frozenset[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _resource_limits() -> dict[str, tuple[int, int]]:
    try:
        import resource
    except ImportError:  # not on this system
        return {}
    return {
        name: resource.getrlimit(getattr(resource, name))
        for name in dir(resource)
        if name.startswith("RLIMIT_")
    }


def _told_of_logger(logger: logging.Logger) -> dict[str, Any]:
    told = ("level", "propagate", "disabled", "handlers", "filters")
    return {name: copy.copy(getattr(logger, name)) for name in told}


def _set_root_logger(value: tuple[int, tuple[logging.Handler, ...]]) -> None:
    logging.root.setLevel(value[0])
    logging.root.handlers[:] = value[1]


def _set_decimal_context(value: tuple[int, str]) -> None:
    decimal.getcontext().prec, decimal.getcontext().rounding = value


def _set_garbage_collection(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _open_file(descriptor: int) -> str:
    try:
        opened = os.fstat(descriptor)
    except OSError:
        return "closed"
    return f"file {opened.st_ino} on device {opened.st_dev}"


def _put_back(
    settings: Mapping[str, _Setting], before: Mapping[str, Any], changes: Mapping[str, str]
) -> None:
    for name in changes:
        value: Any = before.get(name)
        if name in settings:
            _write(settings[name], value)
        elif name.startswith(_VARIABLE):
            variable = name.removeprefix(_VARIABLE)
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
            if variable == "TZ":
                time.tzset()
        # Only the main thread may set handlers; None is a handler that was not set from Python, and
        # cannot be.
        elif name.startswith(_HANDLER) and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, name.removeprefix(_HANDLER)), value or signal.SIG_DFL)


def _write(setting: _Setting, value: Any) -> None:
    if setting.write is not None:
        # What torch will not take back (a flag whose module is frozen) is reported, not restored.
        with contextlib.suppress(RuntimeError):
            setting.write(value)


def _differing(before: _Code, after: _Code) -> str:
    names = [f"{owner}.{name}" for owner, name in before.differing(after)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _told(value: Any) -> str:
    return getattr(value, "__qualname__", None) or str(value)
