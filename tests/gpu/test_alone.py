"""Runs the tests on the emulated device, which want a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is emulated beside a CUDA device")
@pytest.mark.parametrize("module", ["test_emulated.py", "test_clauses.py"])
def test_in_a_process_of_its_own(module: str, request: pytest.FixtureRequest) -> None:
    planted = ["-k", "not planted"] if request.config.getoption("--mutants") != "full" else []
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *planted, HERE / module],
        cwd=HERE.parents[1], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
