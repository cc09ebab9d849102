"""Ten minutes on a machine with a CUDA device: rehearsed on the CPU."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.experiments import on_device
from tests.experiments.on_device import NOT_THERE, PHASES, Step, run_phase, steps_of

INTERRUPTIBLE = """
import time
try:
    print("begun", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("wrote what it had")
    raise SystemExit(130)
"""


def program(name: str, seconds: float, text: str) -> Step:
    return Step(name, seconds, (sys.executable, "-c", text))


def members(archive: Path) -> set[str]:
    with tarfile.open(archive) as file:
        return set(file.getnames())


def test_a_step_that_fails_or_hangs_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = []

    def phase(folder: Path, dry: bool) -> Iterator[Step]:
        yield program("raises", 30, "raise SystemExit(3)")
        yield Step("absent", 30, ("a-program-that-is-not-there",))
        yield program("hangs", 8, INTERRUPTIBLE)
        yield program("works", 30, f"open({str(folder / 'result')!r}, 'w').write('it')")

    pack = on_device._pack

    def counted(folder: Path, archive: Path) -> None:
        packed.append(archive)
        pack(folder, archive)

    monkeypatch.setitem(PHASES, "gates", phase)
    monkeypatch.setattr(on_device, "_pack", counted)
    assert run_phase("gates", tmp_path, hub=None, minutes=5, dry=True) == 3
    told = (tmp_path / "steps.txt").read_text().splitlines()
    assert [line.split(",")[0] for line in told] == [
        "gates raises: status 3",
        f"gates absent: status {NOT_THERE}",
        "gates hangs: status 130",
        "gates works: status 0",
    ]
    assert len(packed) == 4, "packed after each step"
    assert "gates/result" in members(tmp_path / "gates.tgz")
    assert "wrote what it had" in (tmp_path / ".gates" / "hangs.log").read_text()


def test_no_step_is_begun_that_time_does_not_suffice_for(tmp_path: Path) -> None:
    assert run_phase("power", tmp_path, hub=None, minutes=0.1, dry=True) == 1
    assert (tmp_path / "steps.txt").read_text() == "power power: no time left\n"


@pytest.mark.parametrize("phase", PHASES)
def test_the_first_steps_fit_into_ten_minutes(phase: str, tmp_path: Path) -> None:
    *all_but_last, _ = steps_of(phase, tmp_path)
    assert sum(step.seconds for step in all_but_last) < 60 * on_device.MINUTES - 30


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a CUDA device: run the phases on it"
)
@pytest.mark.parametrize(
    "phase",
    [pytest.param(one, marks=[pytest.mark.release] if one != "gates" else []) for one in PHASES],
)
def test_every_phase_runs_on_a_cpu(phase: str, tmp_path: Path) -> None:
    # The recording of a comparison's power takes longest: it is ended early, as on the device.
    minutes = 0.5 if phase == "power" else on_device.MINUTES
    run_phase(phase, tmp_path, hub=None, minutes=minutes, dry=True)
    told = (tmp_path / "steps.txt").read_text().splitlines()
    status = {line.split()[1].rstrip(":"): line.partition("status ")[2] for line in told}
    for step in steps_of(phase, tmp_path, dry=True):
        # What is about the device is not-run without one: not certified.
        expected = 1 if step.name.startswith("profile") else 0
        expected = NOT_THERE if step.name == "nvidia-smi" else expected
        log = (tmp_path / f".{phase}" / f"{step.name}.log").read_text()
        ended = int(status[step.name].partition(",")[0])
        assert ended == expected or (step.name == "power" and ended == 130), log[-2000:]
    packed = members(tmp_path / f"{phase}.tgz")
    assert {f"{phase}/{name}.log" for name in status} <= packed
    results = {
        "gates": "certificate-mistral-v0.1-7b-instruct/certificate.json",
        "bench": "bench-probe/run-001.json",
        "families": "certificate-phi-2-3b/certificate.json",
        "power": "power",
    }
    assert f"{phase}/{results[phase]}" in packed
