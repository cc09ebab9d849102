"""Texts as a page shows them: back-ticks become code, and what two texts do not share is marked.

Every text may come from the subject. It is escaped here, and what these functions return is markup.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from markupsafe import Markup, escape

from conformance.places import DOCUMENTATION
from conformance.report.narrative import visible

_CODE = re.compile(r"`([^`\n]+)`")
_EMPHASIS = re.compile(r"\*(\w[^*\n]*)\*")
_DOCUMENT = re.compile(r"\bdocs/([\w-]+\.md)\b")
_LITERAL = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")
_PIECES = re.compile(r"\\.|\w+|\s+|.", re.DOTALL)
_ALIKE = 0.5
"""Texts that share less than this are two texts, not one that was changed."""
_LONGEST = 4000
"""Characters of a text that is compared: the time goes by their square."""


def prose(text: str) -> Markup:
    """`text`, with what stands between back-ticks as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(_CODE.split(visible(text)))
    )


def statement(text: str, *, linked: bool = True) -> Markup:
    """A clause's statement, of ours: `*words*` are stressed as well, and documents linked unless
    the text stands in something that is clicked itself."""
    marked = _EMPHASIS.sub(r"<em>\1</em>", str(prose(text)))
    if not linked:
        return Markup(marked)
    return Markup(_DOCUMENT.sub(rf'<a href="{DOCUMENTATION}/\1">docs/\1</a>', marked))


def apart(observed: str, expected: str) -> tuple[Markup, Markup]:
    """Both texts as prose; where each quotes a text and these are alike, what they do not share is
    marked in them, as deleted and as inserted."""
    # Of pairs that are as much alike, the longest says most.
    alike = max(
        (
            (a, b)
            for a in _quoted(observed)
            for b in _quoted(expected)
            if _matcher(_pieces(a), _pieces(b)).ratio() >= _ALIKE
        ),
        key=lambda pair: len(pair[0]) + len(pair[1]),
        default=None,
    )
    if alike is None:
        return prose(observed), prose(expected)
    ours, theirs = map(_pieces, alike)
    changes = _matcher(ours, theirs).get_opcodes()
    left = Markup("").join(
        _marked("del", ours[a:b], kind != "equal") for kind, a, b, _, _ in changes
    )
    right = Markup("").join(
        _marked("ins", theirs[a:b], kind != "equal") for kind, _, _, a, b in changes
    )
    return _with(observed, alike[0], left), _with(expected, alike[1], right)


@dataclass(frozen=True)
class Token:
    """One token of an encoding: its id, its piece, and whether the other encoding has another."""

    id: str
    piece: str
    apart: bool


def tokens(evidence: Any) -> Mapping[str, Sequence[Token]]:
    """The encodings in `evidence["tokens"]`, observed and expected; empty if it is none."""
    if not isinstance(evidence, Mapping):
        return {}
    sides = {side: list(_pairs(evidence.get(side))) for side in ("observed", "expected")}
    if not any(sides.values()):
        return {}
    ours, theirs = ([token for token, _ in pairs] for pairs in sides.values())
    shared = {"observed": set[int](), "expected": set[int]()}
    for a, b, size in _matcher(ours, theirs).get_matching_blocks():
        shared["observed"].update(range(a, a + size))
        shared["expected"].update(range(b, b + size))
    return {
        side: [
            Token(token, piece, place not in shared[side])
            for place, (token, piece) in enumerate(pairs)
        ]
        for side, pairs in sides.items()
    }


def _pairs(encoded: Any) -> Iterator[tuple[str, str]]:
    for one in encoded if isinstance(encoded, list) else ():
        if isinstance(one, list) and len(one) == 2:
            yield visible(str(one[0])), "" if one[1] is None else visible(str(one[1]))


def _matcher(ours: Sequence[str], theirs: Sequence[str]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, ours, theirs, autojunk=False)


def _quoted(text: str) -> list[str]:
    """The string literals in a text; none of one that is too long to be compared."""
    found = _LITERAL.findall(visible(text)) if len(text) <= _LONGEST else []
    return list(filter(_is_text, found))


def _pieces(literal: str) -> list[str]:
    """A literal's words, spaces and signs, without its quotes."""
    return _PIECES.findall(literal[1:-1])


def _is_text(literal: str) -> bool:
    try:
        return bool(literal) and isinstance(ast.literal_eval(literal), str)
    except (ValueError, SyntaxError):
        return False


def _marked(tag: str, pieces: Sequence[str], differ: bool) -> Markup:
    text = "".join(pieces)
    if not differ or not text:
        return escape(text)
    return Markup(f"<{tag}>{{}}</{tag}>").format(text)


def _with(text: str, literal: str, marked: Markup) -> Markup:
    """`text` as prose, with `marked` inside the quotes of its `literal`."""
    before, _, behind = visible(text).partition(literal)
    return (
        prose(before)
        + Markup("<code>{}{}{}</code>").format(literal[0], marked, literal[-1])
        + prose(behind)
    )
