"""Secrets: the places where a token is found, and those where nobody looks."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from conformance.subject.contract import CANARY_TOKEN
from conformance.subject.secrets import places_in, watching


class Slotted:
    __slots__ = ("kept",)

    kept: str


class Holder:
    def __init__(self, **kept: Any) -> None:
        vars(self).update(kept)


def closure() -> Any:
    token = CANARY_TOKEN
    return lambda: token


def slotted() -> Slotted:
    holder = Slotted()
    holder.kept = CANARY_TOKEN
    return holder


@pytest.mark.parametrize(
    "kept",
    [
        {"nested": [({"deep": CANARY_TOKEN},)]},
        {CANARY_TOKEN: 1},
        functools.partial(print, token=CANARY_TOKEN),
        closure(),
        lambda token=CANARY_TOKEN: token,
        slotted(),
        f"Bearer {CANARY_TOKEN}".encode(),
        Holder(method=Holder(token=CANARY_TOKEN).__init__),  # type: ignore[misc]
    ],
)
def test_what_can_be_reached_is_found(kept: Any) -> None:
    assert [place for place in places_in(Holder(kept=kept)) if place.startswith("backbone.kept")]


def test_a_log_record_of_a_logger_of_its_own_is_heard() -> None:
    with watching() as watch:
        logger = logging.getLogger("of.its.own")
        logger.propagate, logger.disabled = False, False
        logger.debug("%s", CANARY_TOKEN)
    assert watch.leaks() == ["a log record"]
    assert not logger.isEnabledFor(logging.DEBUG)


def test_files_output_warnings_and_programs_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watching() as watch:
        (tmp_path / "kept").write_text(CANARY_TOKEN)
        print(CANARY_TOKEN)
        warnings.warn(CANARY_TOKEN, stacklevel=1)
        subprocess.run([sys.executable, "-c", "", CANARY_TOKEN], check=True)
        monkeypatch.setenv("KEPT", CANARY_TOKEN)
    assert set(watch.leaks()) == {
        "the file kept",
        "what was printed",
        "a warning",
        "the arguments of another program",
        "the environment variable KEPT",
    }


def test_nothing_is_found_where_nothing_is() -> None:
    with watching() as watch:
        print("text")
    assert watch.leaks() == []
