"""Taking turns: two processes time the same benchmark in alternating rounds, in the same
conditions.

On shared machines speed drifts by tens of per cent within seconds, and two processes that run one
after the other differ by as much. Rounds that are milliseconds apart do not (the idea of duet
benchmarking, Bulej et al., ICPE 2020, https://doi.org/10.1145/3358960.3379132). The order is ABBA:
the first, the second, the second, the first.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class PartnerStopped(RuntimeError):
    """The other process ended or did not pass the turn: the fault lies there."""


class Alone:
    """A process without a partner: it is always its turn."""

    in_turns = False
    first = True

    def agree(self, names: Sequence[str]) -> set[str]:
        """The names that both processes have."""
        return set(names)

    def wait(self) -> None:
        """Wait for the turn."""

    def pass_on(self) -> None:
        """Let the other have the turn."""


class Turns(Alone):
    """A process with a partner. `first` begins; the pipes carry the turn from and to the other
    process.

    Raises:
        PartnerStopped: when the other process does not pass the turn within `patience` seconds.
    """

    in_turns = True

    def __init__(self, first: bool, from_other: int, to_other: int, patience: float) -> None:
        self.first = first
        self._from, self._to = from_other, to_other
        self._patience = patience

    def agree(self, names: Sequence[str]) -> set[str]:
        os.write(self._to, json.dumps(list(names)).encode() + b"\n")
        said = b""
        while not said.endswith(b"\n"):
            # A byte at a time: the first turn may follow at once.
            said += self._read()
        return {*names} & {*json.loads(said)}

    def wait(self) -> None:
        self._read()

    def pass_on(self) -> None:
        os.write(self._to, b".")

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._from], [], [], self._patience)
        data = os.read(self._from, 1) if ready else b""
        if not data:
            raise PartnerStopped("the other process, with which this one took turns, has stopped")
        return data


class PointTurns:
    """The `rounds` turns of one benchmark. Whatever happens, the other process gets all of its
    turns."""

    def __init__(self, turns: Alone, rounds: int) -> None:
        self._turns = turns
        self._rounds = rounds
        self._round = 0
        self._prepared = False

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Untimed work that would disturb the partner: the two do it one after the other."""
        if not self._turns.first:
            self._turns.wait()
        try:
            yield
        finally:
            self._turns.pass_on()
            if self._turns.first:
                self._turns.wait()
            self._prepared = True

    def next(self) -> None:
        """End the round before, if there was one, and wait for the turn."""
        self._end()
        if (self._round % 2 == 1) is self._turns.first:
            self._turns.wait()
        self._round += 1

    def over(self) -> None:
        """End the last round."""
        self._end()
        self.forget()

    def forget(self) -> None:
        """Take no more turns with the partner."""
        self._turns = Alone()

    def give_up(self) -> None:
        """Pass on every turn that this process has not used."""
        if not self._prepared:
            with self.preparing():
                pass
        while self._turns.in_turns and self._round < self._rounds:
            self.next()
        self.over()

    def _end(self) -> None:
        if self._round and ((self._round - 1) % 2 == 0) is self._turns.first:
            self._turns.pass_on()
