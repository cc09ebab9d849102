"""Our timers beside torch's own, and triton's on CUDA, on the same work in turns. `python -m
tests.experiments.timer_agreement [ROUNDS]`

Prints the ratio of medians, which is to be within one per cent, and what timing nothing reads.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

from conformance.bench.child.timers import timer_for

_SIDE = {"cpu": 384, "cuda": 4096}


def main(rounds: int = 400) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    matrix = torch.randn(_SIDE[device], _SIDE[device], device=device)

    def work() -> None:
        matrix @ matrix

    theirs = Timer("work()", globals={"work": work}, num_threads=1)
    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: _ours(device, work),
        "torch.utils.benchmark": lambda: theirs.timeit(1).median,
    }
    if device == "cuda":
        from triton.testing import do_bench

        ways["triton do_bench"] = lambda: (
            do_bench(work, warmup=1, rep=5, return_mode="median") / 1e3
        )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        # Who begins alternates, so that what the machine does meanwhile meets all alike.
        for name in ways if number % 2 == 0 else reversed(ways):
            seconds[name].append(ways[name]())
    ours = statistics.median(seconds["ours"])
    for name, values in seconds.items():
        paired = statistics.median(a / b for a, b in zip(seconds["ours"], values, strict=True))
        print(
            f"{device}: {name} {1e6 * statistics.median(values):.2f} µs; ours over it "
            f"{paired:.4f}, {rounds} rounds"
        )
    nothing = statistics.median(_ours(device, lambda: None) for _ in range(rounds))
    print(
        f"{device}: timing nothing reads {1e6 * nothing:.3f} µs, {100 * nothing / ours:.3f} % of "
        f"that work"
    )
    return 0


def _ours(device: str, work: Callable[[], Any]) -> float:
    timer = timer_for(device)
    begun = timer()
    work()
    return float(timer() - begun)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
