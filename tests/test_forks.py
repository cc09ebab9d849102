"""What judges many cases at once does not take half a judgement for a whole one."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from backbones.mistral import MistralLLMBackbone
from tests.forks import Case, judge_in_forks


class DiesWhenLookedUp(MistralLLMBackbone):
    """As the system ends a process that takes all memory."""

    def embed_input_ids(self, input_ids: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_fork_that_died_has_judged_nothing() -> None:
    chosen = frozenset({"CON-01", "EMB-09"})
    case = Case(
        "dies", DiesWhenLookedUp, "mistral-v0.1-7b-instruct", {}, profile=None, also=chosen,
        budget="quick",
    )  # fmt: skip
    assert [*judge_in_forks([case], None)] == [(case, {})]
