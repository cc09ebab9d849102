"""Where what a subject raised came from: the line of its author's, rather than the library's that
the call ended in."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conformance.places import is_ours

_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_FIRST_FRAMES = 8
_LAST_FRAMES = 16
"""How much is kept of a traceback that is longer than both."""
_DEFINITION = re.compile(r"\s*(async def|def|class)\s")
_LINES = 4
"""The most lines of the author's that a failure points to."""


def where(error: BaseException, factory: Callable[..., Any]) -> str:
    """`mine.py:5 in __init__`: the innermost frame in the files of the subject's author.

    Where the exception left them through a library, the place that raised comes behind:
    `mine.py:5 in __init__, from torch/nn/modules/module.py:1967 in __getattr__`. Where the call of
    `factory` itself was refused, it is the line that defines the signature.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "unknown"
    files = _Files.of(factory)
    raised = frames[-1]
    own = next((frame for frame in reversed(frames) if files.hold(frame.filename)), None)
    if own is None:
        defined = _definition_of(factory, files) if refuses_its_call(error) else None
        return defined or files.show(raised)
    # What raised in our code (the hub, say) is no place to look at.
    if own is raised or is_ours(raised.filename):
        return files.show(own)
    return f"{files.show(own)}, from {files.show(raised)}"


def refuses_its_call(error: BaseException) -> bool:
    """Whether the arguments do not fit the signature of what was called from here."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, TypeError) and bool(frames) and is_ours(frames[-1].filename)


def raised_as_evidence(error: BaseException, factory: Callable[..., Any]) -> dict[str, Any]:
    """What a certificate records of an exception: its type, its place and its traceback."""
    return {
        "exception": type(error).__name__,
        "where": where(error, factory),
        "traceback": traceback_from(error, factory),
        "code": [line.as_json() for line in _raising_lines(error, factory)],
    }


def code_behind(
    factory: Callable[..., Any], owners: Iterable[type], members: Iterable[str]
) -> list[dict[str, str]]:
    """The lines of the author's own files that define `members` of the classes `owners`; where none
    of them is the author's, the first lines of those classes and of the factory: where to look for
    the cause of a failure that raised nothing."""
    files, owners = _Files.of(factory), list(owners)
    wanted = [inspect.getattr_static(owner, name, None) for owner in owners for name in members]
    whole = [
        item
        for owner in (*owners, factory)
        for item in (owner, *(vars(owner).values() if inspect.isclass(owner) else ()))
    ]
    for candidates in (wanted, whole):
        lines = [_defining_line(candidate, files) for candidate in candidates]
        if found := list(dict.fromkeys(filter(None, lines)))[:_LINES]:
            return [line.as_json() for line in found]
    return []


def traceback_from(error: BaseException, factory: Callable[..., Any]) -> str:
    """The traceback of an exception, and of those that it was raised from, without the frames that
    lead to the subject's own files."""
    whole = traceback.TracebackException.from_exception(error)
    if hasattr(error, "counterexample"):
        # Those of Hypothesis repeat every strategy.
        whole.__notes__ = None  # type: ignore[attr-defined]
    files = _Files.of(factory)
    for part in _chain(whole):
        frames = list(part.stack)
        begin = next(
            (index for index, frame in enumerate(frames) if files.hold(frame.filename)),
            max(len(frames) - _FIRST_FRAMES, 0),
        )
        frames = frames[begin:]
        if len(frames) > _FIRST_FRAMES + _LAST_FRAMES:
            frames = [*frames[:_FIRST_FRAMES], *frames[-_LAST_FRAMES:]]
        part.stack[:] = frames
    return "".join(whole.format())


def files_loaded() -> list[str]:
    """The files of the modules that are imported and neither ours nor a library's, sorted."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    # Thousands are a library's by their names.
    folders = (*_PACKAGE_FOLDERS, *map(os.fspath, _standard_library()))
    found = {
        _resolved(file)
        for file in files
        if isinstance(file, str) and not any(folder in file for folder in folders)
    }
    return sorted(
        os.fspath(path)
        for path in found
        if path.is_file() and not is_ours(os.fspath(path)) and not _in_library(path)
    )


def libraries_loaded() -> list[str]:
    """The modules of transformers that are imported, sorted."""
    return sorted(name for name in list(sys.modules) if name.partition(".")[0] == "transformers")


@dataclass(frozen=True)
class _Line:
    """A line of the author's: its place, what it belongs to, and its text."""

    where: str
    within: str
    source: str

    def as_json(self) -> dict[str, str]:
        return {"where": self.where, "in": self.within, "source": self.source}


def _raising_lines(error: BaseException, factory: Callable[..., Any]) -> list[_Line]:
    files = _Files.of(factory)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if files.hold(one.filename)]
    return [
        _Line(f"{files.name(one.filename)}:{one.lineno}", one.name, one.line or "")
        for one in frames[-1:]
    ]


def _defining_line(member: Any, files: _Files) -> _Line | None:
    plain: Any = member.fget if isinstance(member, property) else member
    plain = inspect.unwrap(getattr(plain, "__func__", plain))
    if not (inspect.isroutine(plain) or inspect.isclass(plain)):
        return None
    try:
        file, lines = inspect.getsourcefile(plain), inspect.getsourcelines(plain)
    except (TypeError, OSError):  # built in, or made in a place without a file
        return None
    if file is None or not files.hold(file):
        return None
    # Decorators stand above.
    ahead = next((n for n, line in enumerate(lines[0]) if _DEFINITION.match(line)), 0)
    return _Line(
        f"{files.name(file)}:{lines[1] + ahead}",
        getattr(plain, "__qualname__", ""),
        lines[0][ahead].strip(),
    )


def _chain(part: traceback.TracebackException | None) -> Iterator[traceback.TracebackException]:
    while part is not None:
        yield part
        part = part.__cause__ or part.__context__


@dataclass(frozen=True)
class _Files:
    """The files of a subject's author: those under `root`, or, where that is None (in a notebook),
    all that are no library's. Their names begin at `base`."""

    root: Path | None
    base: Path | None

    @classmethod
    def of(cls, factory: Callable[..., Any]) -> _Files:
        name, file = _module_of(factory)
        if file is None:
            return cls(None, None)
        depth = name.count(".") + (file.name == "__init__.py")
        if depth:
            package = file.parents[depth - 1]
            return cls(package, package.parent)
        return cls(file if _in_library(file) else file.parent, file.parent)

    def hold(self, filename: str) -> bool:
        if is_ours(filename) or filename.startswith("<frozen "):
            return False
        place = _resolved(filename)
        within = self.root is None or place.is_relative_to(self.root)
        # An environment may lie beside the author's files, and the author's package in one.
        return within and (
            not _in_library(place) or (self.root is not None and _in_library(self.root))
        )

    def show(self, frame: traceback.FrameSummary) -> str:
        return f"{self.name(frame.filename)}:{frame.lineno} in {frame.name}"

    def name(self, filename: str) -> str:
        """A path to open from the working directory, or else from the package on: certificates must
        not reveal where somebody's home directory is."""
        place = _resolved(filename)
        if not place.is_file():
            return filename
        for folder in place.parents:
            if folder.name in _PACKAGE_FOLDERS or folder in _standard_library():
                return os.fspath(place.relative_to(folder))
        for base in (_working_directory(), self.base, _above_its_packages(place)):
            if base is not None and place.is_relative_to(base):
                return os.fspath(place.relative_to(base))
        return place.name


def _above_its_packages(file: Path) -> Path:
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _module_of(factory: Callable[..., Any]) -> tuple[str, Path | None]:
    """The module that defines the factory: its name and its file."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    plain = inspect.unwrap(factory)
    name = getattr(plain, "__module__", None) or type(plain).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    return name, Path(file).resolve() if file else None


def _definition_of(factory: Callable[..., Any], files: _Files) -> str | None:
    plain = inspect.unwrap(factory)
    function = plain.__init__ if inspect.isclass(plain) else plain
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not files.hold(code.co_filename):
        return None
    return f"{files.name(code.co_filename)}:{code.co_firstlineno} in {code.co_name}"


def _in_library(place: Path) -> bool:
    return any(part in _PACKAGE_FOLDERS for part in place.parts) or any(
        place.is_relative_to(folder) for folder in _standard_library()
    )


@cache
def _standard_library() -> tuple[Path, ...]:
    paths: Mapping[str, str] = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib"))


@cache
def _resolved(filename: str) -> Path:
    return Path(filename).resolve()


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return None
