"""What properties draw: texts, messages, dialogues, batches and token ids, each made for one
subject.

Everything drawn is a JSON value, so that a counterexample can be written out and replayed.
"""

from __future__ import annotations

from hypothesis import strategies as st

from conformance.subject.declarations import Declarations
from conformance.subject.subject import Subject

IMAGE_MARKER = "<image>"

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
    """Ordinary text: no special-token string of the tokenizer, no `<image>` marker or part that
    could re-join to one."""
    return (
        not any(special in text for special in subject.special_strings)
        and "<image" not in text
        and "image>" not in text
    )


def ordinary_text(subject: Subject) -> st.SearchStrategy[str]:
    """Any text a user may write that has no special meaning to the tokenizer, the empty string
    included."""
    return _unicode_text().filter(lambda text: is_ordinary(subject, text))


def message(subject: Subject) -> st.SearchStrategy[str]:
    """Ordinary, non-empty and free of surrounding space: what hosts hand to a prompt builder."""
    return ordinary_text(subject).map(stripped).filter(bool)


def dialogue(subject: Subject, *, empty_answers: bool = True) -> st.SearchStrategy[list[str]]:
    """Messages in turn order, human first, one to six of them."""
    human = message(subject)
    gpt = st.one_of(human, st.just("")) if empty_answers else human
    return st.integers(1, 6).flatmap(
        lambda turns: st.tuples(*(human if turn % 2 == 0 else gpt for turn in range(turns))).map(
            list
        )
    )


def history(subject: Subject) -> st.SearchStrategy[list[str]]:
    """A dialogue in which it is the human's turn, possibly empty."""
    return dialogue(subject).map(lambda messages: messages[: len(messages) // 2 * 2])


def exchanges(subject: Subject) -> st.SearchStrategy[list[str]]:
    """One to three questions, each with an answer that is not empty."""
    return st.integers(1, 3).flatmap(
        lambda pairs: st.tuples(*[message(subject)] * (2 * pairs)).map(list)
    )


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


def image_messages(subject: Subject) -> st.SearchStrategy[list[str]]:
    """The parts of a message that `<image>` markers separate."""
    return st.lists(ordinary_text(subject), min_size=2, max_size=4).filter(
        lambda parts: is_ordinary(subject, "".join(parts))
    )


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
    drawn = st.one_of(
        st.sampled_from((f"{known}-unheard-of", f"{known}-", known, "pure", "chat", "unknown-7b")),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.builds(
            lambda suffix: f"{known}-{suffix}",
            st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8),
        ),
    )
    rules = (subject.declared, Declarations())
    return drawn.filter(
        lambda identifier: (
            bool(identifier) and not any(rule.builder_for(identifier) for rule in rules)
        )
    )


def stripped(text: str) -> str:
    return text.strip()
