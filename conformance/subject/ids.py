"""The ids that a class knows, and whether a constructor refused one because there is none of that
name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from conformance.errors import CannotAssess, did_you_mean
from conformance.subject.raised import where

_CLOSE = 0.925
"""How like a known id (`difflib`, 1 for the same) an unknown one is that is told to be misspelt
where the class shows no table: a letter or two. Lower, an id of a new family's own would count."""


class UnknownId(CannotAssess):
    """The constructor knows no such id. The message names those that it knows."""


def ids_of(factory: Callable[..., Any]) -> tuple[str, ...]:
    """The ids in the class's own table `{id: {"hf_hub_path", …}}`, the seed's convention: one that
    it or its module holds, or else a base of it. None without a table."""
    return next(filter(None, map(_ids_in, _places_of(inspect.unwrap(factory)))), ())


def check_id(
    error: BaseException, factory: Callable[..., Any], backbone_id: str, known: Iterable[str]
) -> None:
    """Tell an id that does not exist from a constructor that is at fault. It asked the hub for
    nothing before it raised `error`; `known` are the ids that recipes stand for.

    Raises:
        UnknownId: `error` names the id, which is in neither the class's table nor `known`, and
            there are ids that it could have been.
    """
    known = tuple(known)
    table = ids_of(factory)
    if backbone_id in (*known, *table) or backbone_id not in str(error):
        return
    # Where there is no table, those that the error lists may be all that it knows.
    candidates = table or tuple(name for name in known if name in str(error))
    cutoff = 0.6 if candidates else _CLOSE
    suggested = did_you_mean(backbone_id, candidates or known, cutoff=cutoff)
    if not candidates and not suggested:
        return
    listed = f"; it knows {', '.join(candidates)}" if candidates else ""
    raise UnknownId(
        f"there is no id `{backbone_id}`{suggested}: the constructor raised "
        f"{type(error).__name__} at {where(error, factory)}{listed}; choose with --id"
    )


def _places_of(factory: Callable[..., Any]) -> Iterator[Mapping[str, Any]]:
    """Where a table may be, the nearest first: each class's own members, then its module's
    constants."""
    for item in inspect.getmro(factory) if inspect.isclass(factory) else (factory,):
        if inspect.isclass(item):
            yield vars(item)
        module = sys.modules.get(getattr(item, "__module__", ""))
        if module is not None:
            yield {name: value for name, value in vars(module).items() if name.isupper()}


def _ids_in(members: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            key
            for table in members.values()
            if isinstance(table, Mapping)
            for key, row in table.items()
            if isinstance(key, str) and isinstance(row, Mapping) and "hf_hub_path" in row
        )
    )
