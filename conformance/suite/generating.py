"""What the clauses on generation share: who generates, and from which prompts."""

from __future__ import annotations

import torch

from conformance.assertions import NotApplicable
from conformance.control import Inputs
from conformance.subject.subject import Subject
from conformance.suite.product import Compared, compared


def that_generates(subject: Subject) -> Compared:
    """The compared instances.

    Raises:
        NotApplicable: they do not generate.
    """
    if not hasattr(subject.training.llm, "generate"):
        raise NotApplicable(f"a {type(subject.training.llm).__name__} does not generate")
    return compared(subject)


def left_padded(inputs: Inputs, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts: ids and mask, (batch, length)."""
    ids = inputs.ids(batch, length)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, : row * length // (batch + 1)] = 0
    return ids, mask
