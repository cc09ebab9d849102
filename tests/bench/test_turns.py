from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from conformance.bench.turns import Turns

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


def test_the_order_is_abba_and_preparing_disturbs_nobody() -> None:
    done: list[str] = []

    def act(name: str) -> Callable[[Turns], None]:
        def rounds(turns: Turns) -> None:
            for _ in range(2):  # two benchmarks, one after the other
                turns.begin_preparing()
                done.append(name.upper())
                turns.end_preparing()
                for number in range(ROUNDS):
                    turns.begin(number)
                    done.append(name)
                    turns.end(number)

        return rounds

    both(act("a"), act("b"))
    assert "".join(done) == "ABabbaabbaabba" * 2


@pytest.mark.parametrize("gives_up", ["first", "second"])
def test_who_gives_up_keeps_nobody_waiting(gives_up: str) -> None:
    finished: list[str] = []

    def act(name: str) -> Callable[[Turns], None]:
        def rounds(turns: Turns) -> None:
            turns.begin_preparing()
            turns.end_preparing()
            for number in range(ROUNDS):
                turns.begin(number)
                turns.end(number)
                if name == gives_up and number == 1:
                    turns.forfeit(number + 1, ROUNDS)
                    break
            finished.append(name)

        return rounds

    both(act("first"), act("second"))
    assert sorted(finished) == ["first", "second"]


def test_they_agree_on_what_both_have() -> None:
    agreed: dict[str, set[str]] = {}

    def first(turns: Turns) -> None:
        agreed["first"] = turns.agree(["x", "y"])
        turns.begin_preparing()
        turns.end_preparing()

    def second(turns: Turns) -> None:
        agreed["second"] = turns.agree(["y", "z"])
        turns.begin_preparing()
        turns.end_preparing()

    both(first, second)
    assert agreed == {"first": {"y"}, "second": {"y"}}


def test_a_partner_that_stopped_is_told() -> None:
    from_other, to_self = os.pipe()
    from_self, to_other = os.pipe()
    os.close(to_self)
    with pytest.raises(RuntimeError, match="has stopped"):
        Turns(False, from_other, to_other, 1).begin(0)
    for pipe in (from_other, from_self, to_other):
        os.close(pipe)
