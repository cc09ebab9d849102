"""The project's tests. README.md says what is where, and how long it takes."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The checkout."""

# Before torch is first imported: threads do not survive a fork, and a fork that asks
# for several after its parent had several waits for ever (`tests/forks.py`).
os.environ.setdefault("OMP_NUM_THREADS", "1")
