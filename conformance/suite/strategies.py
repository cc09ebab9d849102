"""What properties draw: texts, messages, dialogues, batches and token ids, each made for one
subject.

Everything drawn is a JSON value, so that a counterexample can be written out and replayed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st

from conformance.assertions import NotApplicable
from conformance.places import fixtures_directory
from conformance.subject.declarations import Declarations
from conformance.subject.subject import Subject

IMAGE_MARKER = "<image>"
UNKNOWN_ID = "no-such-backbone-13b"
"""A backbone id that no class knows and no rule covers."""

LOOK_ALIKES = (
    "<s", "s>", "</s", "<s >", "</ s>", "<|", "|>", "<|endoftext", "endoftext|>", "<|im_start|>",
    "<PAD", "<pad>", "PAD>",
    "<unk", "[INST]", "[/INST]", "[INST", "<<SYS>>", "<</SYS>>", "<SYS>", "USER:", "ASSISTANT:",
    "In:", "Out:",
    "Instruct:", "Output:", "<0x0A>", "▁", "Ġ", "Ċ", "<img>", "< image >",
)  # fmt: skip
"""Strings that resemble special tokens of one family or another; those that are the subject's own
are filtered out."""

_WORDS = (
    "the", "robot", "arm", "What", "action", "should", "take", "to", "pick", "up", "red", "cup",
    "?", ".", ",", "True",
    "No", "42", "3.14", "don't", "I'll", "über", "naïve",
    "日本語", "дом", "שלום", "مرحبا", "🤖", "👩‍👩‍👧", "é", "e\u0301", "ﬁ", "İ",
    "\u200b", "\u00a0", "\ufeff", "=>", "{}", "%s", "\\n", "a" * 30, "://",
)  # fmt: skip

ALL_WORDS = " ".join(_WORDS)
"""All words in one text: added vocabulary shows here, whatever is drawn."""


LONGEST_MESSAGE = 4000
"""Characters of the longest message that is tried."""


@cache
def corpus() -> tuple[str, ...]:
    """What people and tools write, the shortest first: the texts of fixtures/corpora."""
    path = fixtures_directory() / "corpora" / "texts.json"
    held = json.loads(path.read_text(encoding="utf-8"))
    long = (
        (entry["repeat"] * entry["characters"])[: entry["characters"]]
        for entry in held["long"].values()
    )
    return tuple(sorted((*held["texts"].values(), *long), key=len))


def _pieces() -> st.SearchStrategy[str]:
    anything = st.characters(exclude_categories=["Cs"])
    control = st.characters(categories=("Cc", "Cf"))
    return st.one_of(
        st.sampled_from(_WORDS),
        st.sampled_from((" ", "  ", "\n", "\t", "\r\n", "   ")),
        st.text(anything, max_size=8),
        st.sampled_from(LOOK_ALIKES),
        st.text(control, min_size=1, max_size=2),
    )


def _unicode_text() -> st.SearchStrategy[str]:
    spaced = st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join)
    return st.one_of(spaced, st.lists(_pieces(), max_size=8).map("".join))


def is_ordinary(subject: Subject, text: str) -> bool:
    """Ordinary text: no special-token string of the tokenizer nor the terminator, no `<image>`
    marker or part that could re-join to one."""
    meant = (*subject.special_strings, *filter(None, [subject.terminator]))
    return (
        not any(special in text for special in meant)
        and "<image" not in text
        and "image>" not in text
    )


def ordinary_text(subject: Subject) -> st.SearchStrategy[str]:
    """Any text a user may write that has no special meaning to the tokenizer, the empty string
    included."""
    return _unicode_text().filter(lambda text: is_ordinary(subject, text))


def ordinary_texts(subject: Subject) -> list[dict[str, str]]:
    """Edges: the texts of the corpus that are ordinary text to this subject, and all words."""
    texts = ("", *corpus(), ALL_WORDS)
    return [{"text": text} for text in texts if is_ordinary(subject, text)]


def message(subject: Subject) -> st.SearchStrategy[str]:
    """Ordinary, non-empty and free of surrounding space: what hosts hand to a prompt builder."""
    return ordinary_text(subject).map(stripped).filter(bool)


def messages_of_corpus(subject: Subject) -> list[str]:
    """The texts of the corpus as messages: ordinary, and free of surrounding space."""
    return [text.strip() for text in corpus() if is_ordinary(subject, text.strip())]


def dialogues(subject: Subject) -> list[dict[str, list[str]]]:
    """Edges: every message of the corpus asked and answered, the same one said again, alone or with
    more, and dialogues of up to seventy exchanges."""
    texts = messages_of_corpus(subject)
    told = [texts[start + shift :][:4] for start in range(0, len(texts), 4) for shift in (0, 1)]
    again = [
        ["Again.", "Again.", "Again."],
        ["Is it?", "Yes.", "Is it?", "Yes.", "And now?"],
        # One that begins, or ends, with the one before it.
        ["Pick up the red cup.", "Pick up the red cup. Done.", "Done. And now?", "What? And now?"],
    ]
    long = [
        of_exchanges(5),
        of_exchanges(12)[:-1],
        of_exchanges(20),
        of_exchanges(70),
        [texts[-1], *again[1]],
    ]
    return [{"messages": said} for said in (*again, *told, *long) if said]


def next_questions(subject: Subject) -> list[dict[str, Any]]:
    """Edges: every message of the corpus as the next question, and questions late in a dialogue."""
    first = [(list[str](), text, None) for text in messages_of_corpus(subject)]
    late = [(of_exchanges(count), "And now?", None) for count in (1, 5, 12, 20, 70)]
    asked = [(of_exchanges(count), "And now?", "You are a robot arm.") for count in (0, 1, 5)]
    again = (["Is it?", "Yes."], "Is it?", None)
    return [
        {"history": history, "text": text, "system_prompt": system_prompt}
        for history, text, system_prompt in (*first, *late, *asked, again)
    ]


def questions_with_images(subject: Subject) -> list[dict[str, Any]]:
    """Edges: messages with one marker and with several, wherever they stand."""
    return [
        {"history": history, "text": IMAGE_MARKER.join(parts)}
        for parts in _AROUND_IMAGES
        for history in ([], ["Is it?", "Yes."])
    ]


def dialogues_with_images(subject: Subject) -> list[dict[str, list[str]]]:
    """Edges: `dialogues`, messages with one marker and with several, and one with what only begins
    like a marker."""
    marked = [IMAGE_MARKER.join(parts) for parts in _AROUND_IMAGES]
    marked.append('Which <images> show vector<image2d_t>, and which <image src="a.png"/>?')
    return [*({"messages": [said] * 3} for said in marked), *dialogues(subject)]


_AROUND_IMAGES = (
    ("", "\nWhat is it?"),
    ("What is it?\n", ""),
    ("Compare ", " and ", "."),
    ("", "", " Which is which?"),
    ("", "\n", "\n", "\n", ""),
    ("Look at this", "\nand at this", "\n\nand compare."),
    ("This\n", "and\n", "\tthat."),
)
"""What stands before, between and after `<image>` markers."""


def of_exchanges(count: int) -> list[str]:
    """A dialogue of so many exchanges, no message of which is said twice."""
    return [
        message
        for number in range(1, count + 1)
        for message in (f"What is step {number}?", f"Step {number}: move to shelf {number + 50}.")
    ]


_TURNS = (*(1, 2, 3, 4, 5, 6) * 3, 10, 24)
"""How many messages a drawn dialogue has: mostly few."""


@st.composite
def _said(
    draw: Callable[..., Any], human: Any, gpt: Any, turns: Sequence[int] = _TURNS
) -> list[str]:
    """Messages in turn order; now and then one is an earlier one said again."""
    said: list[str] = []
    for turn in range(draw(st.sampled_from(turns))):
        earlier = [text for text in said if text]
        again = bool(earlier) and draw(st.integers(0, 5)) == 5
        said.append(draw(st.sampled_from(earlier) if again else gpt if turn % 2 else human))
    return said


def dialogue(subject: Subject, *, empty_answers: bool = True) -> st.SearchStrategy[list[str]]:
    """Messages in turn order, human first: up to twelve exchanges, mostly three at most."""
    human = message(subject)
    return _said(human, st.one_of(human, st.just("")) if empty_answers else human)


def history(subject: Subject) -> st.SearchStrategy[list[str]]:
    """A dialogue in which it is the human's turn, possibly empty."""
    return dialogue(subject).map(lambda messages: messages[: len(messages) // 2 * 2])


def exchanges(subject: Subject) -> st.SearchStrategy[list[str]]:
    """One to three questions, each with an answer that is not empty."""
    return _said(message(subject), message(subject), (2, 4, 6))


def actions(_: Subject) -> st.SearchStrategy[list[int]]:
    """One discretised robot action of seven dimensions, 256 bins each (OpenVLA's)."""
    return st.lists(st.integers(0, 255), min_size=7, max_size=7)


def any_message(subject: Subject) -> st.SearchStrategy[str]:
    """A message as users really send it: `<image>` markers and surrounding space included."""
    dressed = st.tuples(
        st.sampled_from(("", " ", "\n", IMAGE_MARKER, f" {IMAGE_MARKER}\n")),
        ordinary_text(subject),
        st.sampled_from(("", " ", "\n\n", IMAGE_MARKER, f"{IMAGE_MARKER} ")),
    )
    return dressed.map("".join)


def dialogue_with_images(subject: Subject) -> st.SearchStrategy[list[str]]:
    """A dialogue whose messages hold up to three `<image>` markers."""
    parts = st.lists(ordinary_text(subject), min_size=1, max_size=4).filter(
        lambda parts: is_ordinary(subject, "".join(parts))
    )
    spaced = st.sampled_from(("", "", "\n", " ", "\n\n"))
    marker = st.builds("{}{}{}".format, spaced, st.just(IMAGE_MARKER), spaced)
    sent = st.builds(str.join, marker, parts)
    return st.lists(sent, min_size=2, max_size=4)


def token_ids(subject: Subject) -> st.SearchStrategy[list[list[int]]]:
    """A batch of ids over the whole range of the embedding, as a rectangle of `(batch,
    sequence)`."""
    rows = int(subject.training.llm.get_input_embeddings().weight.shape[0])
    ids = st.one_of(
        st.integers(0, rows - 1), st.sampled_from((0, rows - 1, max(len(subject.tokenizer) - 1, 0)))
    )
    return st.tuples(st.integers(1, 3), st.integers(1, 6)).flatmap(
        lambda shape: st.lists(
            st.lists(ids, min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    )


def sequences(
    subject: Subject, min_length: int = 2, max_length: int = 24
) -> st.SearchStrategy[list[list[int]]]:
    """A ragged batch of token ids below `len(tokenizer)`, free of special tokens."""
    special = set(subject.tokenizer.all_special_ids)
    ids = st.integers(0, len(subject.tokenizer) - 1).filter(lambda token: token not in special)
    return st.lists(st.lists(ids, min_size=min_length, max_size=max_length), min_size=1, max_size=4)


def text_batches(subject: Subject) -> st.SearchStrategy[list[str]]:
    """Two to five ordinary texts of different lengths."""
    return st.lists(ordinary_text(subject), min_size=2, max_size=5)


def undeclared_identifiers(subject: Subject) -> st.SearchStrategy[str]:
    """Identifiers that neither the family's prompt rule nor the seed's covers: one class may serve
    several families."""
    known = subject.backbone_id.rpartition("-")[0]
    rules = (subject.declared, Declarations())

    def is_undeclared(identifier: str) -> bool:
        return bool(identifier) and not any(rule.builder_for(identifier) for rule in rules)

    likely = (f"{known}-unheard-of", f"{known}-", known, "pure", "chat", "unknown-7b", "?")
    undeclared = [identifier for identifier in likely if is_undeclared(identifier)]
    if not undeclared:
        raise NotApplicable("the declared `prompt_rule` covers every identifier")
    drawn = st.one_of(
        st.sampled_from(undeclared),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.builds(
            lambda suffix: f"{known}-{suffix}",
            st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8),
        ),
    )
    return drawn.map(lambda drawn: drawn if is_undeclared(drawn) else undeclared[0])


def stripped(text: str) -> str:
    return text.strip()
