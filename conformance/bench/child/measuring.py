"""Measures one request in this process: a session per target, pytest-benchmark's fixture per
point."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.bench.child import benchmarks
from conformance.bench.child.device import (
    DENSE_PEAKS,
    ceilings,
    check_device,
    device_facts,
    disturbances,
    driver,
    state,
)
from conformance.bench.child.injection import seconds_per_unit, slowed
from conformance.bench.child.memory import peak_memory
from conformance.bench.child.provenance import check_modules, check_place
from conformance.bench.child.timers import timer_for
from conformance.bench.child.turns import Alone, PartnerStopped, PointTurns
from conformance.bench.child.workloads import Work, work_of
from conformance.bench.points import Point, building, points
from conformance.bench.request import HOME, LEAST_ROUNDS, BenchRequest
from conformance.bench.results.statistics import steady_from
from conformance.bench.results.stored import SCHEMA
from conformance.errors import CannotAssess
from conformance.hub.language_model import decoder_config
from conformance.oracle.shapes import parameter_shapes
from conformance.parity.library import attention_of, attentions_of, cast_parameters
from conformance.parity.streaming import seeded_model
from conformance.run.environment import environment
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.target import resolve

_WARM_UP = 3
"""Rounds before the first that counts: by then, whatever is compiled, cached or allocated once
exists."""


def measure(request: BenchRequest, out: Path, turns: Alone) -> None:
    """Measure every point of `request` and write pytest-benchmark's JSON, with our additions, to
    `out`.

    Raises:
        CannotAssess: if a target or the device is not available.
        PartnerStopped: if the partner process has stopped.
    """
    check_device(request.device)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get(HOME))))
        stopwatch = Stopwatch(request, stack.enter_context(Backbones(request, scratch)), turns)
        grid = stopwatch.grid()
        _keep_to(request.processor)
        stopwatch.measure_ceilings()
        raw = scratch / "benchmark.json"
        # This process does nothing else, so what pytest prints is the log.
        status = pytest.main(
            [
                str(Path(benchmarks.__file__)), "-q", "--no-header", "--noconftest", "-c",
                os.devnull, "--rootdir", str(scratch),
                "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "--benchmark-disable-gc",
                "--benchmark-json", str(raw), "--benchmark-timer", _timer(request.device),
                "--benchmark-quiet",
            ],
            plugins=[_Plugin(stopwatch, grid)],
        )  # fmt: skip
        if stopwatch.partner_stopped:
            raise stopwatch.partner_stopped
        reported = {entry["name"] for entry in stopwatch.entries}
        if forgotten := sorted({point.name for point in grid} - reported):
            missing = ", ".join(forgotten)
            raise RuntimeError(f"pytest ended with status {int(status)} and did not run {missing}")
        check_modules(request)
        text = raw.read_text(encoding="utf-8") if raw.exists() else '{"benchmarks": []}'
        document = json.loads(text)
        document["conformance"] = {
            "schema": SCHEMA,
            "recorded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "request": request.as_json(),
            "environment": _comparable(stopwatch.device, request.device),
            "ceilings": stopwatch.ceilings,
            "points": stopwatch.entries,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
        os.replace(partial, out)


class Backbones(ExitStack):
    """The targets' backbones in half precision on the device, at the requested size; holds one at a
    time."""

    def __init__(self, request: BenchRequest, scratch: Path) -> None:
        super().__init__()
        self.request = request
        self._scratch = scratch
        self._target = ""
        self._backbone: Any = None

    def of(self, target: str) -> Any:
        """The target's backbone; the previous one is released."""
        if self._target != target:
            self._backbone, self._target = None, ""
            self.close()
            asked = self.request
            run = RunRequest(
                target=target, backbone_id=asked.backbone_id, seed=asked.seed, **asked.paths()
            )
            resolved = resolve(target, asked.backbone_id)
            home = Path(tempfile.mkdtemp(dir=self._scratch))
            session = self.enter_context(open_session(resolved, run, home, lambda *phase: None))
            session.construct()
            check_place(resolved.factory, asked.code)
            self._backbone, self._target = _half_precision(session.subject, asked), target
        return self._backbone


class Stopwatch:
    """Times points one after the other. A point that cannot be timed is reported, and the rest go
    on: `entries` says what became of each, measured, or why not."""

    def __init__(self, request: BenchRequest, backbones: Backbones, turns: Alone) -> None:
        self.request = request
        self.device: dict[str, Any] = {}
        self.ceilings: dict[str, float] = {}
        self.partner_stopped: PartnerStopped | None = None
        self.entries: list[dict[str, str]] = []
        self._backbones = backbones
        self._turns = turns

    def grid(self) -> list[Point]:
        """The points of all targets that the partner process has too; the others are reported as
        `alone`."""
        grid = [point for target in self.request.targets for point in self._grid_of(target)]
        # Only now, since a constructor may set the number of threads.
        self.device = device_facts(self.request.device)
        common = self._turns.agree([point.name for point in grid])
        for point in grid:
            if point.name not in common:
                self._report(point.name, "alone", "the other version has no such benchmark")
        return [point for point in grid if point.name in common]

    def _grid_of(self, target: str) -> list[Point]:
        """The points of one target, on the attention it was built with, on all it has, or on those
        requested.

        A target that cannot be built has no points; it is reported, and the other targets go on.
        """
        request = self.request
        try:
            own = self._backbones.of(target).llm
        except Exception as error:
            self._report(building(target), "failed", _in_words(error))
            return []
        asked = request.attentions or (_attention_of(own),)
        if "all" in asked:
            asked = attentions_of(own)
        return points(
            target, request.size, asked, compiled=request.compiled, workloads=request.workloads
        )

    def _report(self, name: str, status: str, why: str) -> None:
        self.entries.append({"name": name, "status": status, "why": why})

    def measure_ceilings(self) -> None:
        """Measure the device's top speed and the time of a unit of extra work, in a separate
        turn."""
        if not self.request.memory:
            return
        device = self.request.device
        with PointTurns(self._turns, 0).preparing():
            with suppress(torch.cuda.OutOfMemoryError):
                found = ceilings(device)
                self.ceilings = {**found, "seconds_per_unit": seconds_per_unit(device)}
            _give_back_memory()

    def time(self, benchmark: Any, point: Point) -> None:
        """Time one point with pytest-benchmark's fixture; exit pytest if the partner has
        stopped."""
        benchmark.name = benchmark.fullname = point.name
        benchmark.group = point.workload
        turns = PointTurns(self._turns, self.request.rounds)
        try:
            status, why = self._timed(benchmark, point, turns)
        except PartnerStopped as stopped:
            turns.forget()
            self.partner_stopped = stopped
            pytest.exit(str(stopped))
        except Exception as error:
            benchmark.has_error = True
            out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
            status, why = "out-of-memory" if out_of_memory else "failed", _in_words(error)
        finally:
            turns.give_up()
        benchmark.skipped = status != "measured"
        self._report(point.name, status, why)
        # Only now, since the exception kept references to what was allocated.
        _give_back_memory()

    def _timed(self, benchmark: Any, point: Point, turns: PointTurns) -> tuple[str, str]:
        backbone = self._backbones.of(point.target)
        own = backbone.llm
        if point.attention not in (*attentions_of(own), _attention_of(own)):
            why = f"{type(own).__name__} has no {point.attention} attention on this machine"
            return "not-applicable", why
        with attention_of(own, point.attention) as llm:
            backbone.llm = llm
            try:
                llm.train(point.workload == "train")
                return "measured", "; ".join(self._rounds(benchmark, backbone, point, turns))
            finally:
                backbone.llm = own
                llm.zero_grad(set_to_none=True)

    def _rounds(self, benchmark: Any, backbone: Any, point: Point, turns: PointTurns) -> list[str]:
        """Time the rounds, and return what disturbed them, in words."""
        request = self.request
        with turns.preparing():
            work = work_of(backbone, backbone.llm, point, request.seed)
            extra = request.injected.get(point.name, 0)
            run = slowed(work.run, request.device, extra, request.injected_bytes)
            memory = None
            if point.compiled:
                run(work.prepare())  # memory that compiling allocates is not the model's
            if request.memory:
                memory = peak_memory(request.device, backbone, work.prepare, run, _WARM_UP)
            else:
                for _ in range(_WARM_UP):
                    run(work.prepare())
            before = _state_at_work(request.device, run, work)

        def set_up() -> tuple[tuple[Any], dict[str, Any]]:
            turns.next()
            prepared = work.prepare()
            if request.device != "cpu":
                torch.cuda.synchronize()  # preparation must not run into the timed part
            return (prepared,), {}

        benchmark.pedantic(run, setup=set_up, rounds=request.rounds, iterations=1)
        after = _state_at_work(request.device, run, work)
        turns.over()
        seconds = benchmark.stats.stats.data
        left_out = min(steady_from(seconds), max(0, len(seconds) - LEAST_ROUNDS))
        if not self._turns.in_turns:
            del seconds[:left_out]
        benchmark.extra_info.update(
            {
                **asdict(point),
                **self._rates(work, statistics.median(seconds)),
                "in_turns": self._turns.in_turns,
                "rounds_left_out": left_out,
                "peak_memory_bytes": memory,
                "before": before,
                "after": after,
            }
        )
        return disturbances(before, after, own=2 if self._turns.in_turns else 1)

    def _rates(self, work: Work, seconds: float) -> dict[str, Any]:
        achieved, read = work.flops / seconds, work.bytes_read / seconds
        peak = DENSE_PEAKS.get(self.device["name"]) if self.request.device != "cpu" else None
        rates = {
            "tokens_per_second": work.tokens / seconds,
            "flops": work.flops,
            "flops_per_second": achieved,
            "dense_peak_flops": peak,
            "mfu": achieved / peak if peak else None,
            "bytes_read": work.bytes_read,
            "bytes_per_second": read,
        }
        if self.ceilings:
            rates["share_of_measured_flops"] = achieved / self.ceilings["flops"]
            rates["share_of_measured_bandwidth"] = read / self.ceilings["bytes_per_second"]
        return rates


def _keep_to(processor: int | None) -> None:
    """Called once the backbones are built, which two processes do faster on two processors."""
    if processor is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {processor})


def _half_precision(subject: Any, request: BenchRequest) -> Any:
    backbone = subject.build()
    dtype, on = backbone.half_precision_dtype, torch.device(request.device)
    if request.size == "full":
        config = decoder_config(subject.recipe.config)
        backbone.llm = None
        backbone.llm = seeded_model(
            type(subject.training.llm), config, parameter_shapes(config), dtype, on,
            seed=request.seed, attention=_attention_of(subject.training.llm),
        )  # fmt: skip
    else:
        cast_parameters(backbone, dtype)
    backbone = backbone.to(on)
    backbone.llm.requires_grad_(True)
    return backbone


def _attention_of(llm: Any) -> str:
    return getattr(llm.config, "_attn_implementation", None) or "eager"


def _state_at_work(device: str, run: Any, work: Work) -> dict[str, Any]:
    """`state` while the device works: throttling under load does not show when it is idle."""
    if device == "cpu":
        return state(device)
    # The query takes longer than a round.
    with ThreadPoolExecutor(1) as asking:
        told = asking.submit(state, device)
        while not told.done():
            run(work.prepare())
            torch.cuda.synchronize()
        return told.result()


def _give_back_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_words(error: Exception) -> str:
    if isinstance(error, CannotAssess):
        return str(error)
    return f"{type(error).__name__}: {str(error).split('. Tried to allocate')[0][:500]}"


def _timer(device: str) -> str:
    timer = timer_for(device)
    return f"{timer.__module__}.{timer.__qualname__}"


def _comparable(facts: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What must be equal for two results to be compared: the device first, then the software."""
    told = environment()
    software = {name: told[name] for name in ("python", "platform", "packages")}
    return {"device": facts, "driver": driver(device), **software}


class _Plugin:
    """Gives the benchmarks their points and the stopwatch."""

    def __init__(self, stopwatch: Stopwatch, grid: list[Point]) -> None:
        self._stopwatch = stopwatch
        self._grid = grid

    @pytest.fixture
    def stopwatch(self) -> Stopwatch:
        return self._stopwatch

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        metafunc.parametrize("point", self._grid, ids=[point.name for point in self._grid])

    def pytest_benchmark_update_machine_info(
        self, config: Any, machine_info: dict[str, Any]
    ) -> None:
        machine_info["device"] = self._stopwatch.device

    def pytest_benchmark_update_commit_info(self, config: Any, commit_info: dict[str, Any]) -> None:
        code = self._stopwatch.request.code
        commit_info.update({"code": code} if code else {})
