"""Two calls of one backbone at once, in an order that is always the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

_PATIENCE_SECONDS = 5.0
"""How long one call waits for the other: where a lock lets in one at a time, they follow each
other."""


def overlapping(
    inside: torch.nn.Module, first: Callable[[], Any], second: Callable[[], Any]
) -> tuple[Any, Any] | None:
    """What two calls return, or the exceptions that they raise: each in a thread of its own, the
    second from when the first has come to the module `inside` until after the first has ended.

    None if one of them never comes there while the other is under way: they then say nothing of
    each other.
    """
    came = {name: threading.Event() for name in ("first", "second")}
    ended, ended_first, met = dict[str, Any](), threading.Event(), threading.Event()

    def meet(*_: Any) -> None:
        name = threading.current_thread().name
        if name in came and not came[name].is_set():
            came[name].set()
            if name == "second" and came["first"].is_set() and not ended_first.is_set():
                met.set()
            (came["second"] if name == "first" else ended_first).wait(_PATIENCE_SECONDS)

    def run(call: Callable[[], Any]) -> None:
        name = threading.current_thread().name
        if name == "second":
            came["first"].wait(_PATIENCE_SECONDS)
        try:
            ended[name] = call()
        except BaseException as error:  # `SystemExit` too, which ends a thread silently
            ended[name] = error
        if name == "first":
            ended_first.set()

    hook = inside.register_forward_pre_hook(meet)
    try:
        threads = [
            threading.Thread(target=run, args=(call,), name=name, daemon=True)
            for name, call in (("first", first), ("second", second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        hook.remove()
    return (ended["first"], ended["second"]) if met.is_set() else None
