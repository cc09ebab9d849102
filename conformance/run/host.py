"""The process that judges a backbone within itself: what is left of it afterwards, and what it
shows meanwhile."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from typing import TextIO

Aloud = Callable[[], AbstractContextManager[object]]
"""Makes a context in which the process writes to its own streams."""
aloud: Aloud = nullcontext


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Put back, after the body, what importing torch and transformers and judging a backbone change
    in a process: hooks, warning filters, the environment, the module path, the states of random
    number generators; and start no thread that stays."""
    hooks = sys.excepthook, threading.excepthook, sys.breakpointhook
    environment, path = dict(os.environ), list(sys.path)
    with warnings.catch_warnings():
        import numpy as np
        import torch
        from tqdm import tqdm

        states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        # tqdm starts a thread with the first bar that it draws, unless the interval is 0.
        interval, tqdm.monitor_interval = tqdm.monitor_interval, 0
        try:
            yield
        finally:
            tqdm.monitor_interval = interval
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.random.set_rng_state(states[2])
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
            sys.excepthook, threading.excepthook, sys.breakpointhook = hooks


@contextmanager
def silence() -> Iterator[Aloud]:
    """Drop what the body writes to the standard streams, through handlers of loggers too. From a
    `breakpoint()` on everything is shown, and the debugger stops a frame below it (`up`)."""
    sink = io.StringIO()
    out, err, stop = sys.stdout, sys.stderr, sys.breakpointhook

    @contextmanager
    def speaking() -> Iterator[None]:
        with redirect_stdout(out), redirect_stderr(err):
            yield

    def stop_visibly(*arguments: object, **options: object) -> object:
        sys.stdout, sys.stderr = out, err
        return stop(*arguments, **options)

    sys.breakpointhook = stop_visibly
    redirected = {
        handler: handler.setStream(sink)
        for handler in _stream_handlers()
        if handler.stream in (out, err)
    }
    try:
        with redirect_stdout(sink), redirect_stderr(sink):
            yield speaking
    finally:
        sys.breakpointhook = stop
        for handler in _stream_handlers():
            # Those made meanwhile have taken the sink for standard error.
            if handler.stream is sink:
                handler.setStream(redirected.get(handler) or err)


def _stream_handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and not isinstance(
                handler, logging.FileHandler
            ):
                yield handler
