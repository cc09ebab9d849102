"""Benchmarks on an emulated card, through the processes that measure: every workload, and what the
driver tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.bench.parent.checkouts import Side
from conformance.bench.parent.recording import record, record_pairs
from conformance.bench.power import Calibration, Experiment, memory_found
from conformance.bench.request import BenchRequest
from conformance.bench.results.comparison import Finding, compare
from conformance.bench.results.stored import Run
from tests.gpu import emulated, emulated_card
from tests.mutants import INSTRUCT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not emulated.is_possible(), reason="this torch lets no Python be a device"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is emulated beside a device"),
]
ASKED = BenchRequest((INSTRUCT,), device=emulated.NAME, rounds=4)
"""Rounds are few: nothing here asks how long they take."""
PREFILL = BenchRequest((INSTRUCT,), device=emulated.NAME, rounds=4, workloads=("prefill",))
TOLD = {
    "quiet": (emulated_card.QUIET, 1, ""),
    "at the power cap": (emulated_card.QUIET.replace("0000", "0004"), 1, ""),
    "too hot": ("570.1, 1980, 3201, 1980, 91, 301.5, Disabled, 0x40", 1, "thermal (hardware)"),
    "sync boost": ("570.1, 1980, 3201, 1980, 41, 301.5, Disabled, 0x10", 1, "sync boost"),
    "a neighbour": (emulated_card.QUIET, 2, "1 other processes on the device"),
    "no permission": ("570.1, [N/A], [N/A], [N/A], 41, [N/A], [N/A], [Insufficient]", 0, ""),
    "no driver": (None, 0, ""),
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def tells(answer: str | None = emulated_card.QUIET, processes: int = 1) -> None:
        folder = tmp_path / "driver"
        for name, value in emulated_card.in_environment(folder, answer, processes).items():
            monkeypatch.setenv(name, value)

    return tells


def measured(request: BenchRequest, folder: Path) -> Run:
    return record(request, 1, folder, timeout=300.0).runs[0]


@pytest.mark.release
def test_every_workload_is_measured(card: Any, tmp_path: Path) -> None:
    card()
    run = measured(ASKED, tmp_path / "out")
    assert not run.unmeasured
    assert {name.split("[")[0] for name in run.benchmarks} == {"prefill", "decode", "train"}
    assert not run.disturbed
    assert run.ceilings.keys() == {"flops", "bytes_per_second", "seconds_per_unit"}
    assert run.environment["device"] == {
        "kind": "cuda", "name": emulated_card.CARD, "memory_bytes": 1 << 40,
        "multiprocessors": 1, "mig": False,
    }  # fmt: skip
    assert run.environment["driver"] == "570.1"
    for one in run.benchmarks.values():
        assert one.peak_memory, "bytes that were requested"
        assert one.facts["before"]["sm_clock_mhz"] == 1980


@pytest.mark.parametrize(
    "how",
    [pytest.param(one, marks=[] if one == "sync boost" else [pytest.mark.release]) for one in TOLD],
)
def test_what_the_driver_tells_is_beside_the_numbers(card: Any, tmp_path: Path, how: str) -> None:
    answer, processes, disturbance = TOLD[how]
    card(answer, processes)
    run = measured(PREFILL, tmp_path / "out")
    assert len(run.benchmarks) == 1
    told = "; ".join(run.disturbed.values())
    assert disturbance in told
    assert bool(disturbance) == bool(told)


@pytest.mark.release
def test_a_slice_of_a_card_is_another_device(card: Any, tmp_path: Path) -> None:
    card(emulated_card.QUIET.replace("Disabled", "Enabled"))
    assert measured(PREFILL, tmp_path / "out").environment["device"]["mig"] is True


def test_pairs_take_turns_and_memory_that_is_injected_is_found(card: Any, tmp_path: Path) -> None:
    card(processes=2)
    experiment = Experiment(PREFILL, tmp_path, 300.0, lambda what, number, total: None)
    experiment.inject_memory(Calibration({}, 10_000_000))
    own = Side("installed", None)
    alike = record_pairs(PREFILL, own, own, 2, tmp_path / "alike", timeout=300.0)
    (same,) = compare(*alike, paired=True).benchmarks
    assert same.finding is not Finding.HUNGRIER, "requested bytes are the same each time"
    assert not any(run.disturbed for recording in alike for run in recording.runs)
    assert memory_found(tmp_path) == {"injectedBytes": 100_000, "found": 1, "of": 1}


def test_a_constant_left_on_the_cpu_fails_the_benchmark_by_name(card: Any, tmp_path: Path) -> None:
    card()
    request = BenchRequest(
        ("tests.gpu.planted:ConstantLeftBehind",), INSTRUCT, device=emulated.NAME, rounds=4,
        workloads=("prefill",),
    )  # fmt: skip
    (why,) = measured(request, tmp_path / "out").unmeasured.values()
    assert "Expected all tensors to be on the same device" in why
