"""Counts against figures computed by hand, and against torch's own counter."""

from __future__ import annotations

import itertools
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_benchmark.utils import load_timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from conformance.bench.child import measuring, timers
from conformance.bench.child.device import disturbances, state
from conformance.bench.child.memory import held_storages, peak_memory
from conformance.bench.child.timers import DeviceInstant
from conformance.bench.child.workloads import (
    attention_flops,
    cache_bytes,
    flops_per_token,
    read_weights,
    work_of,
)
from conformance.bench.points import Point, points

MATRICES = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8 * 32
"""Per layer 4 · 8·8 for q and o (8), k and v (4 each), and 3 · 8 · 16; two layers, and a head of 8
· 32."""


def tiny(**changes: Any) -> Any:
    shape = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 32,
    }  # fmt: skip
    with torch.random.fork_rng():
        return LlamaForCausalLM._from_config(
            LlamaConfig(**{**shape, **changes}), attn_implementation="eager"
        ).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_are_counted_once_and_the_head_always(tied: bool) -> None:
    llm = tiny(tie_word_embeddings=tied)
    assert flops_per_token(llm) == 2 * MATRICES
    assert read_weights(llm) == 4 * MATRICES


def test_attention_and_cache_by_hand() -> None:
    """Queries at 2 and 3 see three and four keys: 4 · two layers · width 8 · 7; the cache of five
    tokens holds two key-value heads of width 2 in two layers, keys and values, of four bytes, for
    two rows."""
    llm = tiny()
    assert attention_flops(llm, 1, 2, 4) == 4 * 2 * 8 * 7
    assert cache_bytes(llm, 2, 5) == 2 * 2 * 5 * 2 * (2 * 2) * 4
    llm.config.sliding_window = 3
    assert attention_flops(llm, 1, 2, 4) == 4 * 2 * 8 * 6
    assert cache_bytes(llm, 2, 5) == 2 * 2 * 3 * 2 * (2 * 2) * 4
    llm.config.layer_types = ["sliding_attention", "full_attention"]
    assert attention_flops(llm, 1, 2, 4) == 4 * 8 * (6 + 7)
    assert cache_bytes(llm, 2, 5) == 2 * 2 * (3 + 5) * (2 * 2) * 4


@pytest.mark.parametrize(("workload", "times"), [("prefill", 1), ("train", 3)])
def test_flops_are_those_that_torch_counts(workload: str, times: int) -> None:
    """But for attention, of which torch counts the masked half too."""
    llm = tiny()
    work = work_of(llm, llm, Point("x", "probe", workload, "eager", 2, 6), 0)
    with FlopCounterMode(display=False) as counted:
        work.run(work.prepare())
    full = 2 * 4 * 2 * 8 * 6 * 6
    expected = counted.get_total_flops() - times * (full - attention_flops(llm, 2, 0, 6))
    # Before transformers 4.48 rotary angles are a matrix product: 12 FLOPs a layer here.
    assert work.flops == pytest.approx(expected, abs=times * 24)


def test_decoding_decodes() -> None:
    llm = tiny()
    work = work_of(llm, llm, Point("x", "probe", "decode", "eager", 2, 6), 0)
    assert work.run(work.prepare()).shape == (2, 1)
    assert work.tokens == 4
    assert work.bytes_read == 2 * (read_weights(llm) + cache_bytes(llm, 2, 6))


def test_names_are_stable_and_distinct() -> None:
    grid = points("mistral", "full", ["eager", "sdpa"], compiled=True)
    assert len({point.name for point in grid}) == len(grid)
    assert "prefill[mistral-full-sdpa-compiled-b8-s512]" in {point.name for point in grid}
    assert {point.workload for point in points("m", "probe", ["sdpa"], workloads=["decode"])} == {
        "decode"
    }


def test_peak_memory_counts_what_lives_at_once() -> None:
    def work(_: Any) -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(2000, dtype=torch.uint8)
        del first
        third = torch.empty(500, dtype=torch.uint8)
        del second, third

    # The allocator hands out whole blocks of 64 bytes.
    # What is prepared counts while the round runs, and how it was prepared does not.
    def prepare() -> torch.Tensor:
        return torch.empty(9000, dtype=torch.uint8)[:4000].clone()

    assert peak_memory("cpu", None, lambda: None, work, 2) == pytest.approx(3000, abs=128)
    assert peak_memory("cpu", None, prepare, work, 2) == pytest.approx(7000, abs=128)


KEPT: list[torch.Tensor] = []


@pytest.mark.parametrize(
    "where", ["attribute", "container", "global", "made once", "more each time"]
)
def test_what_is_kept_counts_wherever_it_is_kept(where: str) -> None:
    """Also what was there before the first round: a second copy of the weights, say."""
    backbone = SimpleNamespace(weights=torch.zeros(8000, dtype=torch.uint8), kept={})

    def forward(_: Any) -> None:
        new = torch.empty(1000, dtype=torch.uint8)
        if where == "attribute":
            backbone.last = new
        elif where == "container":
            backbone.kept["last"] = [new]
        elif where == "made once":
            backbone.kept.setdefault("table", new)
        elif where == "global":
            KEPT[:] = [new]
        else:
            KEPT.append(new)

    KEPT.clear()
    # Two at once, the old and the new; or three, of three rounds.
    expected = 8000 + (3000 if where == "more each time" else 2000)
    assert peak_memory("cpu", backbone, lambda: None, forward, 3) == pytest.approx(
        expected, abs=256
    )
    KEPT.clear()


def test_what_a_backbone_holds_is_counted_once() -> None:
    weights = torch.zeros(1000, dtype=torch.uint8)
    model = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    in_closure, in_partial = (torch.zeros(size, dtype=torch.uint8) for size in (70, 7))
    backbone = SimpleNamespace(llm=model, views=(weights[:10], weights[10:]), itself={})
    backbone.itself["backbone"] = backbone
    backbone.rotate = lambda: in_closure
    backbone.scale = partial(torch.mul, in_partial)
    backbone.table = torch.ones(3, dtype=torch.uint8).to_sparse()

    class Slotted:
        __slots__ = ("made", "never_made")

    backbone.slotted = Slotted()
    backbone.slotted.made = torch.zeros(600, dtype=torch.uint8)
    sparse = 3 * 8 + 3  # an index and a value for each
    assert sum(held_storages(backbone).values()) == 1000 + 4 * 4 * 8 + 77 + sparse + 600


def test_what_takes_the_place_of_something_is_not_counted_beside_it() -> None:
    backbone = SimpleNamespace(table=torch.zeros(9000, dtype=torch.uint8))

    def forward(_: Any) -> None:
        backbone.table = None
        backbone.table = torch.empty(9000, dtype=torch.uint8)

    assert peak_memory("cpu", backbone, lambda: None, forward, 3) == pytest.approx(9000, abs=128)


def test_peak_memory_is_the_same_number_each_time() -> None:
    """Also after other work was measured in the process, and after blocks that it knew were freed
    unseen."""
    llm = tiny()
    train, prefill = (
        work_of(llm, llm, Point("x", "probe", name, "eager", 2, 24), 0)
        for name in ("train", "prefill")
    )

    def measured(work: Any) -> int:
        llm.zero_grad(set_to_none=True)
        return peak_memory("cpu", llm, work.prepare, work.run, 2)

    first = measured(train), measured(prefill)
    assert (measured(train), measured(prefill)) == first == (measured(train), measured(prefill))
    assert first[1] >= 4 * sum(parameter.numel() for parameter in llm.parameters())


class Event:
    """Stands in for `torch.cuda.Event`: the device is `done` three milliseconds after it was given
    work."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = self.synchronised = 0.0

    def record(self) -> None:
        Event.now += 3.0
        self.at = Event.now

    def synchronize(self) -> None:
        self.synchronised = True

    def elapsed_time(self, later: Event) -> float:
        assert later.synchronised, "asked before the device was done"
        return later.at - self.at


def test_the_timer_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    start = DeviceInstant()
    assert DeviceInstant() - start == pytest.approx(3e-3)


def test_pytest_benchmark_finds_the_devices_timer() -> None:
    """It takes the timer as a dotted name."""
    assert load_timer(measuring._timer("cuda")).target is DeviceInstant
    assert load_timer(measuring._timer("cpu")).target is time.perf_counter


def test_a_ceiling_is_measured_once_clocks_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    # A card that was idle: its clock rises in steps of a tenth, and then stays.
    taken = [2.0 * 0.9**step for step in range(12)] + [0.5] * 20
    medians = iter(taken)
    monkeypatch.setattr(timers, "median_seconds", lambda work, device, repeats: next(medians))
    assert timers.steady_seconds(lambda: None, "cuda") == 0.5
    monkeypatch.setattr(timers, "_MOST_SECONDS", 0.1)
    restless = itertools.cycle([1.0, 2.0])
    monkeypatch.setattr(timers, "median_seconds", lambda work, device, repeats: next(restless))
    assert timers.steady_seconds(lambda: None, "cuda") in (1.0, 2.0), "and ends"


SMI = """#!/bin/sh
case "$*" in
*query-compute-apps*) printf '4000001\\n4000002\\n' ;;
*clocks_event_reasons*)
    echo 'Field "clocks_event_reasons.active" is not a valid field to query.' >&2; exit 2 ;;
*) echo '570.1, 1980, 3201, 1980, 41, 301.5, Disabled, 0x0000000000000034' ;;
esac
"""


def test_throttling_and_neighbours_are_read_from_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: object())
    found = state("cuda")
    assert (found["sm_clock_mhz"], found["power_watts"]) == (1980.0, 301.5)
    assert found["throttled"] == ["power cap", "sync boost", "thermal (software)"]
    assert disturbances({}, found) == [
        "throttled: sync boost",
        "throttled: thermal (software)",
        "1 other processes on the device",
    ]
    assert disturbances({}, {**found, "throttled": []}, own=2) == [], (
        "a pair that takes turns is no disturbance"
    )
    assert disturbances(state("cpu"), state("cpu")) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"sm_clock_mhz": 1900.0}, []),
        ({"sm_clock_mhz": 1200.0}, ["the processor's clock went from 1980 to 1200 MHz"]),
        ({"sm_clock_mhz": 1200.0, "throttled": ["power cap"]}, []),
        ({"memory_clock_mhz": 1600.0}, ["the memory's clock went from 2600 to 1600 MHz"]),
        ({"memory_clock_mhz": None}, []),
    ],
)
def test_clocks_that_change_disturb(after: dict[str, Any], told: list[str]) -> None:
    before: dict[str, Any] = {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 2600.0, "throttled": []}
    assert disturbances(before, {**before, **after}) == told


@pytest.mark.parametrize(
    "answer", [None, "570.1, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]", "nonsense"]
)
def test_a_driver_that_does_not_answer_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, answer: str | None
) -> None:
    if answer is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: object())
    assert state("cuda")["throttled"] == []
