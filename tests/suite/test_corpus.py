"""The corpus holds every kind of text that clauses are to try."""

from __future__ import annotations

import unicodedata

import pytest

from conformance.suite.strategies import LONGEST_MESSAGE, corpus


def test_the_shortest_come_first() -> None:
    lengths = [len(text) for text in corpus()]
    assert lengths == sorted(lengths)
    assert lengths[-1] == LONGEST_MESSAGE
    assert len(set(corpus())) == len(corpus())


@pytest.mark.parametrize("length", [500, 1000, 2000, LONGEST_MESSAGE - 1])
def test_messages_are_longer_than_limits_that_people_set(length: int) -> None:
    assert any(length < len(text.strip()) <= 1.1 * length for text in corpus())


@pytest.mark.parametrize(
    "piece",
    [
        "&amp;",
        "&#39;",
        "“",
        "’",
        "«",
        "\u200b",
        "\u202e",
        "ש",
        "\r\n",
        "\t",
        "```",
        '{"',
        "| name",
        "In:",
    ],
)
def test_a_kind_of_text_is_there(piece: str) -> None:
    assert any(piece in text for text in corpus())


def test_letters_are_composed_and_decomposed() -> None:
    for form in ("NFC", "NFD"):
        assert any(unicodedata.normalize(form, text) != text for text in corpus())
