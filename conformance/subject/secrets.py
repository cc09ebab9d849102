"""Where a backbone may have put the token that it was built with: in an object that can be reached
from it, a file, a log record, output, the environment, another program's arguments.

Encoded or split tokens are not looked for.
"""

from __future__ import annotations

import functools
import gc
import io
import logging
import os
import sys
import tempfile
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from conformance.subject.contract import CANARY_TOKEN

_LIBRARIES = frozenset(
    {"torch", "transformers", "tokenizers", "numpy", "builtins", "huggingface_hub", "conformance"}
)
"""Packages into whose classes and functions nobody looks: what the subject keeps is in instances.
The harness itself holds the token."""
_PROGRAMS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"})
"""Audit events that start another program; their arguments show in every list of processes."""
_LARGEST_FILE = 1 << 24
"""Bytes of a file that are looked through."""

_watches: list[Watch] = []


class Watch:
    """What the process said and wrote while it was watched."""

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}
        self.opened: set[str] = set()

    def tell(self, place: str, text: str) -> None:
        """Record what was said at a place."""
        self.said.setdefault(place, []).append(text)

    def leaks(self) -> list[str]:
        """The places where the token is."""
        found = [
            place
            for place, texts in self.said.items()
            if any(CANARY_TOKEN in text for text in texts)
        ]
        found += [f"the file {Path(name).name}" for name in sorted(self.opened) if _holds(name)]
        found += [
            f"the environment variable {name}"
            for name, value in os.environ.items()
            if CANARY_TOKEN in value
        ]
        return found


@contextmanager
def watching() -> Iterator[Watch]:
    """Record, while the body runs, every log record of every logger at every level, warnings,
    output, the files opened for writing and the programs started."""
    watch, printed = Watch(), io.StringIO()
    _install_hook()
    before = _files()
    _watches.append(watch)
    try:
        with (
            _every_record(watch),
            warnings.catch_warnings(record=True) as warned,
            redirect_stdout(printed),
            redirect_stderr(printed),
        ):
            warnings.simplefilter("always")
            yield watch
    finally:
        _watches.remove(watch)
        watch.tell("what was printed", printed.getvalue())
        for warning in warned:
            watch.tell("a warning", str(warning.message))
        # Files that are written by compiled code raise no audit event.
        watch.opened |= {name for name, told in _files().items() if before.get(name) != told}


def places_in(backbone: Any) -> list[str]:
    """The paths on which the token is reached from a backbone: through attributes, containers,
    closures, defaults, partial applications, and the classes and modules that define it."""
    found = []
    queue: list[tuple[str, Any]] = []
    for cls in type(backbone).__mro__:
        if not _is_a_librarys(cls):
            module = sys.modules.get(cls.__module__)
            queue += (
                [
                    (f"{cls.__module__}.{name}", value)
                    for name, value in vars(module).items()
                    # How the module came in (`__spec__`, `__loader__`) is its importer's.
                    if not isinstance(value, types.ModuleType) and not name.startswith("__")
                ]
                if module is not None
                else []
            )
    queue.append(("backbone", backbone))  # taken first: its path says more
    for path, item in _reached(queue):
        if isinstance(item, (str, bytes, bytearray)):
            text = item if isinstance(item, str) else bytes(item).decode("latin-1")
            if CANARY_TOKEN in text:
                found.append(path)
    return sorted(set(found))


def held_by(backbone: Any) -> Iterator[tuple[str, Any]]:
    """Every object that is reached from a backbone, once, with the path that leads there."""
    return _reached([("backbone", backbone)])


def _reached(queue: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    while queue:
        path, item = queue.pop()
        if isinstance(item, (str, bytes, bytearray)):
            yield path, item
            continue
        if id(item) in seen or isinstance(item, (int, float, complex, type(None))):
            continue
        seen.add(id(item))
        yield path, item
        queue += [(f"{path}{step}", inner) for step, inner in _inside(item)]


def _inside(item: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, each with the step that leads there."""
    if isinstance(item, types.ModuleType) or (isinstance(item, type) and _is_a_librarys(item)):
        return
    if type(item).__module__.partition(".")[0] == "conformance":
        return
    if isinstance(item, (dict, types.MappingProxyType)):
        for key, value in list(item.items()):
            yield f"[{key!r:.40}]", value
            yield " (a key)", key
    elif isinstance(item, (list, tuple, set, frozenset)) or type(item).__name__ == "deque":
        yield from ((f"[{place}]", value) for place, value in enumerate(list(item)))
    if isinstance(item, functools.partial):
        yield from ((".func", item.func), (".args", item.args), (".keywords", item.keywords))
    elif isinstance(item, types.MethodType):
        yield from ((".__self__", item.__self__), (".__func__", item.__func__))
    elif isinstance(item, types.FunctionType):
        yield from (
            (" (a default)", item.__defaults__),
            (" (a default)", item.__kwdefaults__),
        )
        for cell in item.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                yield " (a closure)", cell.cell_contents
    elif isinstance(item, (property, staticmethod, classmethod)):
        for name in ("fget", "fset", "__func__"):
            yield f".{name}", getattr(item, name, None)
    elif isinstance(item, functools._lru_cache_wrapper):
        yield from ((" (a cached result)", value) for value in gc.get_referents(item))
    elif isinstance(item, weakref.ref):
        yield "()", item()
    attributes = _attributes(item)
    yield from ((f".{name}", value) for name, value in list(attributes.items()))
    if not isinstance(item, type):
        for cls in type(item).__mro__:
            for name in _slots(cls):
                with suppress(Exception):
                    yield f".{name}", object.__getattribute__(item, name)
            if not _is_a_librarys(cls):
                yield f".__class__<{cls.__name__}>", cls


def _attributes(item: Any) -> Mapping[str, Any]:
    try:
        found = object.__getattribute__(item, "__dict__")
    except Exception:
        found = type.__getattribute__(item, "__dict__") if isinstance(item, type) else {}
    return found if isinstance(found, (dict, types.MappingProxyType)) else {}


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_a_librarys(cls: type) -> bool:
    package = getattr(cls, "__module__", "builtins").partition(".")[0]
    return package in _LIBRARIES or package in sys.stdlib_module_names


@contextmanager
def _every_record(watch: Watch) -> Iterator[None]:
    """Records of loggers that keep handlers of their own, or pass nothing on, count too; handlers
    are given what they would be given anyway."""
    enabled, handle = logging.Logger.isEnabledFor, logging.Logger.handle

    def recorded(self: logging.Logger, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # A record whose arguments do not fit is still a record.
            text = f"{record.msg} {record.args}"
        watch.tell("a log record", f"{text} {vars(record)}")
        if enabled(self, record.levelno):
            handle(self, record)

    def always(self: logging.Logger, level: int) -> bool:
        return True

    logging.Logger.isEnabledFor = always  # type: ignore[method-assign]
    logging.Logger.handle = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        logging.Logger.isEnabledFor = enabled  # type: ignore[method-assign]
        logging.Logger.handle = handle  # type: ignore[method-assign]


@functools.cache
def _install_hook() -> None:
    """Audit hooks stay for the life of the process; without a watch this one does nothing."""
    sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watches:
        return
    for watch in _watches:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            mode, flags = arguments[1], arguments[2]
            if set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                watch.opened.add(os.path.abspath(os.fsdecode(arguments[0])))
        elif event in ("os.rename", "os.link"):
            with suppress(TypeError):
                watch.opened.add(os.path.abspath(os.fsdecode(arguments[1])))
        elif event in _PROGRAMS:
            watch.tell("the arguments of another program", repr(arguments))


def _files() -> dict[str, tuple[int, int]]:
    """Size and time of the files in the folders where a program leaves things."""
    found = {}
    roots = {os.getcwd(), tempfile.gettempdir(), os.path.expanduser("~")}
    roots |= {os.environ[name] for name in ("HF_HOME", "HF_HUB_CACHE") if os.environ.get(name)}
    for root in roots:
        with suppress(OSError), os.scandir(root) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        told = entry.stat(follow_symlinks=False)
                        found[entry.path] = (told.st_size, told.st_mtime_ns)
    return found


def _holds(name: str) -> bool:
    try:
        with open(name, "rb") as stream:
            return CANARY_TOKEN.encode() in stream.read(_LARGEST_FILE)
    except OSError:
        return False
