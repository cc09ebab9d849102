from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from conformance.bench.child.turns import Alone, PointTurns, Turns

ROUNDS = 6


def both(first: Callable[[Turns], None], second: Callable[[Turns], None]) -> None:
    (from_first, to_second), (from_second, to_first) = os.pipe(), os.pipe()
    errors: list[BaseException] = []

    def guarded(act: Callable[[Turns], None], turns: Turns) -> None:
        try:
            act(turns)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(first, Turns(True, from_second, to_second, 5))),
        threading.Thread(target=guarded, args=(second, Turns(False, from_first, to_first, 5))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for pipe in (from_first, to_second, from_second, to_first):
        os.close(pipe)
    assert not errors, errors


def benchmark(name: str, turns: Alone, done: list[str]) -> None:
    point = PointTurns(turns, ROUNDS)
    with point.preparing():
        done.append(name.upper())
    for _ in range(ROUNDS):
        point.next()
        done.append(name)
    point.over()


def test_the_order_is_abba_and_preparing_disturbs_nobody() -> None:
    done: list[str] = []

    def act(name: str) -> Callable[[Turns], None]:
        def two_benchmarks(turns: Turns) -> None:
            for _ in range(2):
                benchmark(name, turns, done)

        return two_benchmarks

    both(act("a"), act("b"))
    assert "".join(done) == "ABabbaabbaabba" * 2


def test_alone_it_is_always_ones_turn() -> None:
    done: list[str] = []
    benchmark("a", Alone(), done)
    assert "".join(done) == "A" + "a" * ROUNDS
    PointTurns(Alone(), ROUNDS).give_up()


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 2, 3, ROUNDS])
@pytest.mark.parametrize("gives_up", ["first", "second"])
def test_who_gives_up_keeps_nobody_waiting(gives_up: str, taken: int, prepared: bool) -> None:
    finished: list[str] = []

    def act(name: str) -> Callable[[Turns], None]:
        def rounds(turns: Turns) -> None:
            for _ in range(2):  # the next benchmark begins in step
                if name != gives_up:
                    benchmark(name, turns, [])
                    continue
                point = PointTurns(turns, ROUNDS)
                if prepared:
                    with point.preparing():
                        pass
                    for _ in range(taken):
                        point.next()
                point.give_up()
            finished.append(name)

        return rounds

    both(act("first"), act("second"))
    assert sorted(finished) == ["first", "second"]


def test_they_agree_on_what_both_have() -> None:
    agreed: dict[str, set[str]] = {}

    def act(name: str, names: list[str]) -> Callable[[Turns], None]:
        def agree(turns: Turns) -> None:
            agreed[name] = turns.agree(names)
            benchmark(name, turns, [])

        return agree

    both(act("first", ["x", "y"]), act("second", ["y", "z"]))
    assert agreed == {"first": {"y"}, "second": {"y"}}


def test_a_partner_that_stopped_is_told() -> None:
    from_other, to_self = os.pipe()
    from_self, to_other = os.pipe()
    os.close(to_self)
    with pytest.raises(RuntimeError, match="has stopped"):
        Turns(False, from_other, to_other, 1).wait()
    for pipe in (from_other, from_self, to_other):
        os.close(pipe)
