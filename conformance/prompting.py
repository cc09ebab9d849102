"""Prompt builders as hosts drive them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conformance.subject import Subject

#: Whose turn it is, in order. Prismatic's conversations call the parties so, after LLaVA's data files.
ROLES = ("human", "gpt")

#: What Prismatic's hosts pass as ``model_family``.
HOST_MODEL_FAMILIES = ("prismatic", "openvla")


def turns_of(builder: Any, messages: Sequence[str]) -> list[str]:
    """Add the messages in turn, human first; returns what ``add_turn`` returned for each."""
    return [builder.add_turn(ROLES[turn % 2], text) for turn, text in enumerate(messages)]


def encode_turn_by_turn(subject: Subject, turns: Sequence[str]) -> list[int]:
    """Token ids of a dialogue encoded a turn at a time, right-stripped, special tokens on the first turn only: what
    Prismatic's fine-tuning dataset does (``FinetuneDataset``)."""
    encoded = (subject.encode(turn.rstrip(), special=number == 0) for number, turn in enumerate(turns))
    return [token for ids in encoded for token in ids]
