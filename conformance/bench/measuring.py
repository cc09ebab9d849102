"""Measuring one request in this process: a session for each target, pytest-benchmark's fixture for each point."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import torch

from conformance.bench import benchmarks
from conformance.bench.injection import seconds_per_unit, slowed
from conformance.bench.machine import (
    ceilings,
    check_device,
    dense_peak,
    device_facts,
    disturbances,
    driver,
    state,
)
from conformance.bench.memory import peak_memory
from conformance.bench.request import HOME, BenchRequest
from conformance.bench.results import SCHEMA
from conformance.bench.statistics import ROUNDS, steady_from
from conformance.bench.turns import PartnerStopped, Turns
from conformance.bench.workloads import Point, Work, points, work_of
from conformance.errors import CannotAssess
from conformance.oracle.shapes import parameter_shapes
from conformance.parity.library import attention_of, attentions_of, cast_parameters
from conformance.parity.streaming import seeded_model
from conformance.run.environment import environment
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.target import resolve

#: Rounds before the first that counts: what is compiled, cached or allocated once is then there.
_WARM_UP = 3


def measure(request: BenchRequest, out: Path, turns: Turns | None = None) -> None:
    """Measure every point of ``request`` and write pytest-benchmark's JSON, with what we add to it, to ``out``.

    Raises:
        CannotAssess: for a target or a device that cannot be had.
    """
    check_device(request.device)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get(HOME))))
        measuring = _Measuring(request, scratch, turns)
        stack.callback(measuring.close)
        grid = measuring.agreed([point for target in request.targets for point in measuring.grid(target)])
        _keep_to(request.processor)
        measuring.measure_ceilings()
        raw = scratch / "benchmark.json"
        # In a fork of its own nothing else wants the terminal; what pytest prints is the log.
        status = pytest.main(
            [
                str(Path(benchmarks.__file__)), "-q", "--no-header", "--noconftest", "-c", os.devnull, "--rootdir", str(scratch),
                "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "--benchmark-disable-gc",
                "--benchmark-json", str(raw), "--benchmark-timer", _timer(request.device), "--benchmark-quiet",
            ],
            plugins=[_Plugin(measuring, grid)],
        )  # fmt: skip
        if measuring.partner_stopped:
            raise measuring.partner_stopped
        forgotten = {point.name for point in grid} - {told["name"] for told in measuring.told}
        if forgotten:
            raise RuntimeError(
                f"pytest ended with status {int(status)} and did not run {', '.join(sorted(forgotten))}"
            )
        _check_modules(request)
        document = json.loads(raw.read_text(encoding="utf-8")) if raw.exists() else {"benchmarks": []}
        document["conformance"] = {
            "schema": SCHEMA,
            "recorded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "request": request.as_json(),
            "environment": _comparable(measuring.device, request.device),
            "ceilings": measuring.ceilings,
            "points": measuring.told,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
        os.replace(partial, out)


class _Measuring:
    """The sessions and models of one request, and what has been told of its points."""

    def __init__(self, request: BenchRequest, scratch: Path, turns: Turns | None) -> None:
        self.request = request
        self.device = device_facts(request.device)
        self._turns = turns
        self.partner_stopped: PartnerStopped | None = None
        self.told: list[dict[str, Any]] = []
        self.ceilings: dict[str, float] = {}
        self._scratch = scratch
        self._open = ExitStack()
        self._target = ""
        self._backbone: Any = None

    def close(self) -> None:
        self._backbone, self._target = None, ""
        self._open.close()

    def grid(self, target: str) -> list[Point]:
        """The points of one target: on the attention that it was built with, all that it has, or those asked for.

        No points where it cannot be built: that is told, and costs no other target.
        """
        try:
            own = self._backbone_of(target).llm
        except Exception as error:
            self._note(f"build[{target}]", "failed", _in_words(error))
            return []
        asked = self.request.attentions or (_attention_of(own),)
        if "all" in asked:
            asked = attentions_of(own)
        return points(
            target, self.request.size, asked, compiled=self.request.compiled, workloads=self.request.workloads
        )

    def measure_ceilings(self) -> None:
        """What the device can do at best, and how long a unit of extra work takes, in a turn of its own."""
        turn = _Turn(self._turns, 0)
        if self.request.memory:
            with turn.preparing():
                with suppress(torch.cuda.OutOfMemoryError):
                    self.ceilings = {
                        **ceilings(self.request.device),
                        "seconds_per_unit": seconds_per_unit(self.request.device),
                    }
                _give_back_memory()

    def agreed(self, grid: list[Point]) -> list[Point]:
        """The points that the process with which this one takes turns has too; of the others it is told that they are alone."""
        if self._turns is None:
            return grid
        common = self._turns.agree([point.name for point in grid])
        for point in grid:
            if point.name not in common:
                self._tell(point, "alone", "the other version has no such benchmark")
        return [point for point in grid if point.name in common]

    def measure(self, benchmark: Any, point: Point) -> None:
        """Time one point with pytest-benchmark's fixture; what cannot be timed is told, and costs no other point. Nothing more is
        timed where the process that this one takes turns with has stopped."""
        try:
            self._measure_or_tell(benchmark, point)
        except PartnerStopped as stopped:
            self.partner_stopped = stopped
            pytest.exit(str(stopped))

    def _measure_or_tell(self, benchmark: Any, point: Point) -> None:
        benchmark.name = benchmark.fullname = point.name
        benchmark.group = point.workload
        turn = _Turn(self._turns, self.request.rounds)
        failure = None
        try:
            self._measure(benchmark, point, turn)
        except PartnerStopped:
            turn.forget()
            raise
        except Exception as error:
            benchmark.skipped = benchmark.has_error = True
            out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
            failure = "out-of-memory" if out_of_memory else "failed", _in_words(error)
        finally:
            turn.give_up()
        if failure:
            self._tell(point, *failure)
        # Not before the exception is gone, which holds on to what it saw.
        _give_back_memory()

    def _measure(self, benchmark: Any, point: Point, turn: _Turn) -> None:
        backbone = self._backbone_of(point.target)
        own = backbone.llm
        if point.attention not in (*attentions_of(own), _attention_of(own)):
            benchmark.skipped = True
            why = f"{type(own).__name__} has no {point.attention} attention on this machine"
            self._tell(point, "not-applicable", why)
            return
        with attention_of(own, point.attention) as llm:
            backbone.llm = llm
            try:
                llm.train(point.workload == "train")
                self._time(benchmark, backbone, point, turn)
            finally:
                backbone.llm = own
                llm.zero_grad(set_to_none=True)

    def _time(self, benchmark: Any, backbone: Any, point: Point, turn: _Turn) -> None:
        request = self.request
        with turn.preparing():
            work = work_of(backbone, backbone.llm, point, request.seed)
            run = slowed(
                work.run, request.device, request.injected.get(point.name, 0), request.injected_bytes
            )
            memory = None
            if point.compiled:
                run(work.prepare())  # what compiling allocates is not the model's
            if request.memory:
                memory = peak_memory(request.device, backbone, work.prepare, run, _WARM_UP)
            else:
                for _ in range(_WARM_UP):
                    run(work.prepare())
            before = _state_at_work(request.device, run, work)

        def set_up() -> tuple[tuple[Any], dict[str, Any]]:
            turn.next()
            prepared = work.prepare()
            if request.device == "cuda":
                torch.cuda.synchronize()  # what is prepared must not hide what is timed
            return (prepared,), {}

        benchmark.pedantic(run, setup=set_up, rounds=request.rounds, iterations=1)
        after = _state_at_work(request.device, run, work)
        turn.over()
        seconds = benchmark.stats.stats.data
        left_out = min(steady_from(seconds), max(0, len(seconds) - ROUNDS))
        if self._turns is None:
            del seconds[:left_out]
        benchmark.extra_info.update(
            {
                **point.as_json(),
                **self._rates(work, statistics.median(seconds)),
                "in_turns": self._turns is not None,
                "rounds_left_out": left_out,
                "peak_memory_bytes": memory,
                "before": before,
                "after": after,
            }
        )
        disturbed = disturbances(before, after, own=1 if self._turns is None else 2)
        self._tell(point, "measured", "; ".join(disturbed))

    def _rates(self, work: Work, seconds: float) -> dict[str, Any]:
        achieved, read = work.flops / seconds, work.bytes_read / seconds
        peak = dense_peak(self.device["name"]) if self.request.device == "cuda" else None
        return {
            "tokens_per_second": work.tokens / seconds,
            "flops": work.flops,
            "flops_per_second": achieved,
            "dense_peak_flops": peak,
            "mfu": achieved / peak if peak else None,
            "bytes_read": work.bytes_read,
            "bytes_per_second": read,
            **(
                {
                    "share_of_measured_flops": achieved / self.ceilings["flops"],
                    "share_of_measured_bandwidth": read / self.ceilings["bytes_per_second"],
                }
                if self.ceilings
                else {}
            ),
        }

    def _tell(self, point: Point, status: str, why: str) -> None:
        self._note(point.name, status, why)

    def _note(self, name: str, status: str, why: str) -> None:
        self.told.append({"name": name, "status": status, "why": why})

    def _backbone_of(self, target: str) -> Any:
        """The target's backbone in half precision on the device, at the size asked for; one at a time is held."""
        if self._target != target:
            self.close()
            run = RunRequest(
                target=target,
                backbone_id=self.request.backbone_id,
                seed=self.request.seed,
                **self.request.paths(),
            )
            resolved = resolve(target, self.request.backbone_id)
            home = self._scratch / f"hf-{len(self.told)}"
            session = self._open.enter_context(open_session(resolved, run, home, lambda phase, detail: None))
            session.construct()
            _check_place(resolved.factory, self.request.code)
            self._backbone = _half_precision(session.subject, self.request)
            self._target = target
        return self._backbone


class _Turn:
    """The turns of one point. Whatever happens, the other process is given all of its own."""

    def __init__(self, turns: Turns | None, rounds: int) -> None:
        self._turns = turns
        self._rounds = rounds
        self._round = 0
        self._prepared = False

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """What is not timed, but would disturb the other."""
        if self._turns is not None:
            self._turns.begin_preparing()
        try:
            yield
        finally:
            if self._turns is not None:
                self._turns.end_preparing()
            self._prepared = True

    def next(self) -> None:
        """End the round before, if there was one, and wait for the turn."""
        if self._turns is not None:
            if self._round:
                self._turns.end(self._round - 1)
            self._turns.begin(self._round)
        self._round += 1

    def over(self) -> None:
        """End the last round."""
        if self._turns is not None:
            self._turns.end(self._round - 1)
        self._turns = None

    def forget(self) -> None:
        """There is nobody to take turns with any more."""
        self._turns = None

    def give_up(self) -> None:
        """Let the other have its turns, where this process could not use its own."""
        if self._turns is None:
            return
        if not self._prepared:
            with self.preparing():
                pass
        if self._round:
            self._turns.end(self._round - 1)
        self._turns.forfeit(self._round, self._rounds)
        self._turns = None


def _keep_to(processor: int | None) -> None:
    """Not before the backbones are built, which two processes do sooner on two processors."""
    if processor is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {processor})


def _half_precision(subject: Any, request: BenchRequest) -> Any:
    backbone = subject.build()
    dtype, on = backbone.half_precision_dtype, torch.device(request.device)
    if request.size == "full":
        config = subject.recipe.config
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


def _check_place(factory: Any, code: str | None) -> None:
    """Nothing is more misleading than two measurements of the same code."""
    module = sys.modules.get(getattr(getattr(factory, "func", factory), "__module__", None) or "")
    place = getattr(module, "__file__", None)
    if (
        code is not None
        and place is not None
        and not Path(place).resolve().is_relative_to(Path(code).resolve())
    ):
        raise CannotAssess(
            f"the target's code came from {place} and not from the checkout {code}: run it from the folder of the repository "
            "that holds its package"
        )


def _check_modules(request: BenchRequest) -> None:
    """Nor may what the target imports come from the working tree, where a commit was to be measured, or from one installed copy
    for both."""
    if request.code is None or request.repository is None:
        return
    root, repository = Path(request.code).resolve(), Path(request.repository).resolve()
    built = set(packages_built_from(repository))
    for name, module in sorted(sys.modules.items()):
        place, package = getattr(module, "__file__", None), name.partition(".")[0]
        if package == "conformance" or not place:
            continue
        path = Path(place).resolve()
        if path.is_relative_to(root):
            continue
        if package in built:
            raise CannotAssess(
                f"{name} came from {place}, where it was installed from {repository}, and not from the checkout {root}: both "
                "versions would be the same; run it from the folder that holds the package, or where it is not installed"
            )
        if path.is_relative_to(repository) and "site-packages" not in path.parts:
            raise CannotAssess(
                f"{name} came from {place}, the working tree, and not from the checkout {root}: an editable installation is "
                "found before it; run it where the package is not installed, or compare stored results (bench run --out)"
            )


def packages_built_from(repository: Path) -> Iterator[str]:
    """The top-level packages and modules of which pip installed a copy from ``repository``, by what it noted of where they came
    from (PEP 610)."""
    for distribution in metadata.distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = origin.get("url", "")
        if not url.startswith("file:") or origin.get("dir_info", {}).get("editable"):
            continue
        if Path(url2pathname(urlsplit(url).path)).resolve().is_relative_to(repository):
            yield from dict.fromkeys(
                file.parts[0].removesuffix(".py") for file in distribution.files or () if file.suffix == ".py"
            )


def _attention_of(llm: Any) -> str:
    return getattr(llm.config, "_attn_implementation", None) or "eager"


def _state_at_work(device: str, run: Any, work: Work) -> dict[str, Any]:
    """:func:`state` while the device works: what slows it under load does not show when it is idle."""
    if device != "cuda":
        return state(device)
    # Asking takes longer than a round does.
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
    return "conformance.bench.timers.DeviceInstant" if device == "cuda" else "time.perf_counter"


def _comparable(facts: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What must be the same where two results are compared: the device first, then the software."""
    told = environment()
    return {
        "device": facts,
        "driver": driver(device),
        "python": told["python"],
        "platform": told["platform"],
        "packages": told["packages"],
    }


class _Plugin:
    """Gives the benchmarks their points, and whom to ask for a measurement."""

    def __init__(self, measuring: _Measuring, grid: list[Point]) -> None:
        self._measuring = measuring
        self._grid = grid

    @pytest.fixture
    def measuring(self) -> _Measuring:
        return self._measuring

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        metafunc.parametrize("point", self._grid, ids=[point.name for point in self._grid])

    def pytest_benchmark_update_machine_info(self, config: Any, machine_info: dict[str, Any]) -> None:
        machine_info["device"] = self._measuring.device

    def pytest_benchmark_update_commit_info(self, config: Any, commit_info: dict[str, Any]) -> None:
        commit_info.update(_commit(self._measuring.request))


def _commit(request: BenchRequest) -> Mapping[str, Any]:
    return {"code": request.code} if request.code else {}
