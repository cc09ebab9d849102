"""The process: what is changed is told and put back, also what was in force already."""

from __future__ import annotations

import sys

import numpy as np
import torch

from conformance.subject.process_state import is_mild, restored, unusual_settings


def test_a_change_is_told_and_put_back() -> None:
    before = np.geterr()
    with restored() as changes:
        np.seterr(all="raise")
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
    assert set(changes) == {"NumPy's handling of errors", "the recursion limit"}
    assert [is_mild(name) for name in sorted(changes)] == [False, True]
    assert np.geterr() == before


def test_setting_what_is_in_force_shows() -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with restored() as outside, unusual_settings(), restored() as changes:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert {"torch's number of threads", "float32 matmul precision"} <= set(changes)
    assert not outside


def test_nothing_changes_by_itself() -> None:
    with restored() as changes:
        pass
    assert not changes
