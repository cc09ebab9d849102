"""Ten minutes on a machine with a CUDA device, used to the full. `python -m
tests.experiments.on_device PHASE --out DIR [--hub DIR]`

Phases, in the order to run them:

- `gates`: the card; profile gpu on Mistral; the planted defects; calibration on the device
- `bench`: timers; benchmarks at probe and published size, sdpa and eager; a compiled training step
- `families`: profile gpu on Llama-2 and Phi-2; the tests of benchmarks and gates there
- `power`: what comparisons find there; draw from its recording later, on any machine

What a machine needs, and how a hub is carried to it, is in docs/gpu.md. Every step has a limit and
a failure ends nothing: `DIR/steps.txt` says how each went, and `DIR/PHASE.tgz`, packed anew after
each step, has its logs, certificates and results. A step at its limit is interrupted as Ctrl-C
does, so that it writes what it has. Exit status: 0 if every step ended with 0, else 1, and 130
interrupted. `--dry` runs each command at its smallest, on the CPU too.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.bench.request import LEAST_ROUNDS
from tests import ROOT

MINUTES = 9.3
"""What a phase may take, so that it ends by itself where commands are ended after ten minutes."""
_LEAST_SECONDS = 15
"""A step is not begun with less time left: importing torch takes as long."""
_GRACE_SECONDS = 10
"""From an interrupt to a kill."""
_LOG_LINES = 40
MISTRAL = "mistral-v0.1-7b-instruct"
NOT_THERE = 127
"""The status of a step whose program is not installed, as a shell gives it."""


@dataclass(frozen=True)
class Step:
    """One command: its name, the seconds it may take, and its arguments."""

    name: str
    seconds: float
    command: tuple[str, ...]


def steps_of(phase: str, folder: Path, *, dry: bool = False) -> list[Step]:
    """The steps of a phase, most valuable first; results go to `folder`."""
    return list(PHASES[phase](folder, dry))


def _gates(folder: Path, dry: bool) -> Iterator[Step]:
    yield _python("card", 60, "tests.experiments.device_card")
    yield Step("nvidia-smi", 20, ("nvidia-smi", "-q"))
    yield _certify("profile", 210, MISTRAL, folder, dry)
    yield _pytest("planted", 130, "tests/gpu/test_clauses.py", "-k", "cuda")
    yield _python(
        "calibrate", 240, "conformance", "calibrate", "--device", "auto" if dry else "cuda",
        "--variants", "9" if dry else "5000", "--out", str(folder / "calibration.json"),
    )  # fmt: skip


def _bench(folder: Path, dry: bool) -> Iterator[Step]:
    rounds = str(LEAST_ROUNDS)
    size = "probe" if dry else "full"
    yield _python("timers", 60, "tests.experiments.timer_agreement", "4" if dry else "200")
    yield _measure(
        "probe", 80, folder, "--rounds", rounds if dry else "90", "--attention", "all",
        *(("--workload", "prefill") if dry else ()),
    )  # fmt: skip
    yield _measure(
        "full-sdpa", 210, folder, "--size", size, "--rounds", rounds, "--attention", "sdpa",
        *(("--workload", "decode") if dry else ()),
    )  # fmt: skip
    yield _measure(
        "full-eager", 170, folder, "--size", size, "--rounds", rounds, "--attention", "eager",
        "--workload", "prefill" if dry else "prefill,train",
    )  # fmt: skip
    compiled = () if dry else ("--compile",)
    yield _measure("compiled", 120, folder, "--rounds", rounds, "--workload", "train", *compiled)


def _families(folder: Path, dry: bool) -> Iterator[Step]:
    for backbone_id in ("llama2-7b-chat", "phi-2-3b"):
        yield _certify(f"profile-{backbone_id}", 180, backbone_id, folder, dry)
    parts = ["tests/bench/test_workloads.py", "tests/bench/test_recording.py", "tests/parity"]
    yield _pytest("tests", 150, *parts, *(("--collect-only",) if dry else ()))


def _power(folder: Path, dry: bool) -> Iterator[Step]:
    pairs = "2" if dry else "6"
    yield _python(
        "power", 540, "conformance", "bench", "power", MISTRAL, "--out", str(folder / "power"),
        "--workload", "prefill" if dry else "prefill,decode", "--rounds", str(LEAST_ROUNDS),
        "--pairs", pairs, "--recorded", pairs,
    )  # fmt: skip


PHASES = {"gates": _gates, "bench": _bench, "families": _families, "power": _power}


def _python(name: str, seconds: float, module: str, *arguments: str) -> Step:
    return Step(name, seconds, (sys.executable, "-m", module, *arguments))


def _pytest(name: str, seconds: float, *arguments: str) -> Step:
    return _python(name, seconds, "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def _certify(name: str, seconds: float, backbone_id: str, folder: Path, dry: bool) -> Step:
    return _python(
        name, seconds, "conformance", "certify", backbone_id, "--profile", "gpu", "--verbose",
        "--timeout", str(round(seconds * 0.9)), "--out", str(folder / f"certificate-{backbone_id}"),
        *(("--only", "GPU-01,GPU-02") if dry else ()),
    )  # fmt: skip


def _measure(name: str, seconds: float, folder: Path, *options: str) -> Step:
    return _python(
        name, seconds, "conformance", "bench", "run", MISTRAL,
        "--timeout", str(round(seconds * 0.95)), "--out", str(folder / f"bench-{name}"), *options,
    )  # fmt: skip


def run_phase(phase: str, out: Path, *, hub: Path | None, minutes: float, dry: bool) -> int:
    """Run every step for which there is time; returns how many did not end with 0."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".{phase}"
    folder.mkdir(exist_ok=True)
    end = time.monotonic() + 60 * minutes
    failed = 0
    for step in steps_of(phase, folder, dry=dry):
        left = end - time.monotonic()
        if left < _LEAST_SECONDS:
            _tell(out, f"{phase} {step.name}: no time left")
            failed += 1
            continue
        capped = replace(step, seconds=min(step.seconds, left))
        began = time.monotonic()
        print(f"--- {phase} {step.name}, at most {capped.seconds:.0f} s", flush=True)
        log = folder / f"{step.name}.log"
        try:
            status = _run(capped, log, hub)
        finally:
            _pack(folder, out / f"{phase}.tgz")
        print("\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]), flush=True)
        seconds = time.monotonic() - began
        _tell(out, f"{phase} {step.name}: status {status}, {seconds:.0f} s of {capped.seconds:.0f}")
        failed += status != 0
    return failed


def _run(step: Step, log: Path, hub: Path | None) -> int:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "200",
        **({"CONFORMANCE_HUB": str(hub)} if hub is not None else {}),
    }
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_interruptible,
            )  # fmt: skip
        except FileNotFoundError as error:
            file.write(f"{error}\n".encode())
            return NOT_THERE
        try:
            return process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            file.write(f"\nat its limit of {step.seconds:.0f} s\n".encode())
            return _end(process)
        except BaseException:
            _end(process)
            raise


def _interruptible() -> None:
    """Interrupts end the step although this process ignores them, as one in the background does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Interrupt the step as Ctrl-C would, and kill what goes on after its grace."""
    process.send_signal(signal.SIGINT)
    try:
        status = process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        status = -signal.SIGKILL
    # What it started is in its session, and goes with it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return status


def _pack(folder: Path, archive: Path) -> None:
    # Written beside and renamed, so that what is there is whole whenever the machine is taken away.
    unfinished = archive.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w:gz") as file:
        file.add(folder, arcname=archive.stem)
    unfinished.replace(archive)


def _tell(out: Path, line: str) -> None:
    print(line, flush=True)
    with (out / "steps.txt").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.experiments.on_device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--out", type=Path, required=True, help="where results are packed")
    parser.add_argument("--hub", type=Path, help="a hub that was carried there")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="what the phase may take")
    parser.add_argument("--dry", action="store_true", help="each command at its smallest")
    asked = parser.parse_args(arguments)
    try:
        failed = run_phase(
            asked.phase,
            asked.out.resolve(),
            hub=asked.hub and asked.hub.resolve(),
            minutes=asked.minutes,
            dry=asked.dry,
        )
    except KeyboardInterrupt:
        print(f"interrupted; what was done is in {asked.out}")
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
