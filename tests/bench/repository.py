"""A repository with a backbone in it, and `conformance bench` as its owner runs it."""

from __future__ import annotations

import pytest

from conformance.cli import main

CLEAN = """
from backbones.mistral import MistralLLMBackbone


class Mine(MistralLLMBackbone):
    pass
"""
SLOW = """
from backbones.mistral import MistralLLMBackbone


class Mine(MistralLLMBackbone):
    def forward(self, *args, **kwargs):
        for _ in range(3):
            super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)
"""
TARGET = ["mine.py:Mine", "--id", "mistral-v0.1-7b-instruct"]
QUICK = ["--workload", "prefill", "--rounds", "30", "--device", "cpu"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["bench", *arguments])
    return int(exit.value.code or 0)
