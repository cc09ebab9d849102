"""Whose code stands in the libraries that a language model is made of.

A layer's class, or a function of torch, that is replaced is replaced for every model of the
process: for the vision tower, and for the control that a subject is compared with.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.utils.checkpoint

TORCH_MODULES = (torch, torch.nn.functional, torch.nn.init, torch.utils.checkpoint)
"""Modules of torch whose functions everything in the process uses."""
_PACKAGES = ("torch", "transformers", "tokenizers", "huggingface_hub")


def replaced_in_libraries(roots: list[Any], own: frozenset[str]) -> list[str]:
    """Every place, as `module.name`, `module.Class.name` or `module.TABLE['name']`, in the modules
    that define `roots`, the modules inside them and what these inherit from, where code of a
    package in `own` stands. What is registered in a table under a new name replaces nothing."""
    classes = {
        cls
        for root in roots
        for part in (root.modules() if isinstance(root, torch.nn.Module) else [root])
        for cls in type(part).__mro__
        if _package(cls.__module__) in _PACKAGES
    }
    modules = {sys.modules.get(cls.__module__) for cls in classes} - {None}
    found = {
        f"{owner}.{name}"
        for owner, members in _members(classes, {*modules, *TORCH_MODULES})
        for name, value in members
        if _is_of(own, value)
    }
    tables = {
        id(table): (name, table)
        for module in modules
        for name, table in vars(module).items()
        if isinstance(table, Mapping)
        and not name.startswith("__")
        # These import every model of the library to be listed, and no key of theirs is a name.
        and not type(table).__module__.startswith("transformers.models.auto.")
    }
    replaced = {
        f"{where}[{key!r}]"
        for name, table in tables.values()
        for key, value in list(table.items())
        if isinstance(key, str)
        and _is_of(own, value)
        and (where := _written_in(name, table, key)) is not None
    }
    return sorted(found | replaced)


def _is_of(own: frozenset[str], value: Any) -> bool:
    return any(_package(module) in own for module in _origins(value))


def _written_in(name: str, table: Any, key: str) -> str | None:
    """The table with its module, if the library's own source gives the key its value."""
    holders = [
        module
        for path, module in list(sys.modules.items())
        if _package(path) in _PACKAGES and vars(module).get(name) is table
    ]
    for module in holders:
        with contextlib.suppress(OSError, TypeError):  # a module without a source
            if re.search(rf'"{re.escape(key)}"\s*:', inspect.getsource(module)):
                return f"{module.__name__}.{name}"
    return None


def _members(classes: set[type], modules: set[Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    for cls in classes:
        yield f"{cls.__module__}.{cls.__qualname__}", list(vars(cls).items())
    for module in modules:
        yield (
            module.__name__,
            [(n, v) for n, v in vars(module).items() if not isinstance(v, ModuleType)],
        )


def _origins(value: Any) -> Iterator[str]:
    """The modules in which a function, and what it wraps, or a class was written: what a decorator
    copies (`__module__`) does not count."""
    for _ in range(10):  # a chain of wrappers is short, and some lead back to themselves
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.partial):
            value = value.func
        elif inspect.isclass(value):
            yield value.__module__
            return
        elif isinstance(value, FunctionType):
            yield str(value.__globals__.get("__name__", ""))
            value = vars(value).get("__wrapped__")
        else:
            return


def _package(module: str) -> str:
    return module.partition(".")[0]
