"""A tap on the hub: records what a constructor requests, and with which token, while a view serves
it.

Requests are recorded where they enter: in transformers' look-ups, which carry the token even if the
cache then answers without it, and in huggingface_hub's functions for direct callers.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from types import ModuleType
from typing import Any

from conformance.hub.view import HubView

TAPPED_FUNCTIONS = (
    ("transformers.utils.hub", "cached_file", "path_or_repo_id"),
    ("transformers.utils.hub", "cached_files", "path_or_repo_id"),
    ("transformers.utils.hub", "has_file", "path_or_repo"),
    ("transformers.utils.hub", "resolve_revision", "path_or_repo_id"),
    ("transformers.utils.hub", "list_repo_templates", "repo_id"),
    ("huggingface_hub.file_download", "hf_hub_download", "repo_id"),
    ("huggingface_hub.file_download", "try_to_load_from_cache", "repo_id"),
    ("huggingface_hub._snapshot_download", "snapshot_download", "repo_id"),
)
"""(module, function, name of the argument that is the repository) of every function that may
contact the hub. Not every version has all of them."""


@dataclass(frozen=True)
class HubCall:
    """One request: the requested file (empty: the repository as such, its revision or a listing),
    the token and revision as the caller gave them (None: not given), and whether the view has the
    file.

    `cache_only` marks a look-up in the local cache that would never have reached the hub and takes
    no token.
    """

    repo_id: str
    filename: str
    token: object
    revision: str | None
    found: bool
    cache_only: bool = False


class HubTap:
    """Inside the `with` block every request for the hub is recorded and answered from `view`,
    offline.

    It also serves a process in which transformers was imported with another HF_HOME. `on_missing`
    is called once with each hub id that is not mounted, before the first request for it: it may
    mount it, or raise an error, which reaches the constructor. On exit everything is restored.
    """

    def __init__(self, view: HubView, on_missing: Callable[[str], None] | None = None) -> None:
        self.calls: list[HubCall] = []
        self._view = view
        self._on_missing = on_missing
        self._asked: set[str] = set()
        self._inside = threading.local()
        self._missing: tuple[str, ...] = ()
        self._nowhere = ""
        self._replaced: dict[int, tuple[Any, Any]] = {}
        self._settings: list[tuple[ModuleType, str, Any]] = []

    def __enter__(self) -> HubTap:
        # Imported first, so that no import takes the tap's settings for the user's.
        modules = {name: _imported(name) for name, _, _ in TAPPED_FUNCTIONS}
        for module_name, function_name, repository in TAPPED_FUNCTIONS:
            original = getattr(modules[module_name], function_name, None)
            if original is not None:
                self._replaced[id(original)] = (original, self._tapped(original, repository))
        _exchange({key: new for key, (_, new) in self._replaced.items()})
        constants, transformers_hub = (
            _imported("huggingface_hub.constants"),
            modules["transformers.utils.hub"],
        )
        cache = str(self._view.cache)
        for module, name, value in (
            (constants, "HF_HUB_OFFLINE", True),
            (constants, "HF_HUB_CACHE", cache),
            (transformers_hub, "_is_offline_mode", True),
            (transformers_hub, "TRANSFORMERS_CACHE", cache),
        ):
            if module is not None and hasattr(module, name):
                self._settings.append((module, name, getattr(module, name)))
                setattr(module, name, value)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._settings:
            module, name, value = self._settings.pop()
            setattr(module, name, value)
        # Modules imported inside the block hold the replacements too: hence a second search.
        _exchange({id(new): original for original, new in self._replaced.values()})
        self._replaced.clear()

    @contextmanager
    def without(self, *patterns: str) -> Iterator[None]:
        """While the body runs, files whose names match are found by nobody who asks for them by
        name, as on a machine without them."""
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            self._missing, self._nowhere = patterns, folder
            try:
                yield
            finally:
                self._missing = ()

    def _tapped(self, original: Callable[..., Any], repository: str) -> Callable[..., Any]:
        signature = inspect.signature(original)
        open_ended = any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()
        )

        @functools.wraps(original)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = _flat(signature.bind(*args, **kwargs))
            except TypeError:
                return original(*args, **kwargs)
            repo_id = str(arguments[repository])
            if os.path.exists(repo_id) or arguments.get("repo_type") not in (None, "model"):
                return original(*args, **kwargs)
            names = _files_asked_for(arguments)
            for name, value in self._forced(names).items():
                if name in signature.parameters or (
                    open_ended and name in ("cache_dir", "local_files_only")
                ):
                    arguments[name] = value
            if getattr(self._inside, "a_request", False):
                return original(**arguments)
            self._inside.a_request = True
            try:
                self._record(
                    repo_id, arguments, cache_only=original.__name__ == "try_to_load_from_cache"
                )
                if original.__name__ == "has_file":
                    # 4.40.1 asks the network whatever the settings say.
                    return self.calls[-1].found
                return original(**arguments)
            finally:
                self._inside.a_request = False

        return tapped

    def _is_missing(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self._missing)

    def _forced(self, names: Iterable[str]) -> dict[str, Any]:
        missing = any(map(self._is_missing, names))
        return {
            "cache_dir": self._nowhere if missing else str(self._view.cache),
            "local_files_only": True,
            "force_download": False,
        }

    def _record(self, repo_id: str, arguments: Mapping[str, Any], *, cache_only: bool) -> None:
        mounted = self._view.is_mounted(repo_id)
        if not mounted and self._on_missing is not None and repo_id not in self._asked:
            self._asked.add(repo_id)
            self._on_missing(repo_id)
            mounted = self._view.is_mounted(repo_id)
        token = arguments.get("token", arguments.get("use_auth_token"))
        # huggingface_hub 2 passes on the revision it resolved; the caller's own is its `initial`.
        revision = getattr(arguments.get("revision"), "initial", arguments.get("revision"))
        for name in _files_asked_for(arguments):
            there = mounted and not self._is_missing(name)
            found = there and (self._view.snapshot(repo_id) / name).exists()
            self.calls.append(HubCall(repo_id, name, token, revision, found, cache_only))


def _files_asked_for(arguments: Mapping[str, Any]) -> list[str]:
    """Their paths in the repository; one that is empty where the whole of it is asked for."""
    names = arguments.get("filenames") or [arguments.get("filename", "")]
    return [os.path.join(arguments.get("subfolder") or "", name) for name in names]


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    arguments = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


def _imported(name: str) -> ModuleType | None:
    try:
        __import__(name)
    except ImportError:
        return None
    return sys.modules[name]


def _exchange(replacements: Mapping[int, Any]) -> None:
    """Puts each replacement wherever a loaded module holds the object it replaces, by identity."""
    for module in list(sys.modules.values()):
        # Look in `__dict__` only: a lazy module must not be made to import anything.
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict):
            continue
        for name, value in list(names.items()):
            replacement = replacements.get(id(value))
            if replacement is not None:
                names[name] = replacement
