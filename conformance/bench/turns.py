"""Taking turns: two processes time the same benchmark round by round, so that both meet the machine as it is at the moment.

On shared machines speed drifts by tens of per cent within seconds, and two processes that run one after the other differ by
as much. Rounds that are milliseconds apart do not (the idea of duet benchmarking, Bulej et al., ICPE 2020,
https://doi.org/10.1145/3358960.3379132). The order is ABBA: the first, the second, the second, the first.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Sequence

_TOKEN = b"."


class PartnerStopped(RuntimeError):
    """The other process ended, or did not pass the turn: whatever is wrong is wrong there."""


class Turns:
    """This process's side: ``first`` begins; the pipes carry the turn from and to the other process.

    Raises:
        PartnerStopped: when the other process does not pass the turn within ``patience`` seconds.
    """

    def __init__(self, first: bool, from_other: int, to_other: int, patience: float) -> None:
        self._first = first
        self._from, self._to = from_other, to_other
        self._patience = patience

    def agree(self, names: Sequence[str]) -> set[str]:
        """The names that both processes have."""
        os.write(self._to, json.dumps(list(names)).encode() + b"\n")
        said = b""
        while not said.endswith(b"\n"):
            # A byte at a time: the first turn may follow at once.
            said += self._read(1)
        return {*names} & {*json.loads(said)}

    def begin_preparing(self) -> None:
        """Wait until the other is not at work, before what is not timed but would disturb."""
        if not self._first:
            self._wait()

    def end_preparing(self) -> None:
        self._pass()
        if self._first:
            self._wait()

    def begin(self, number: int) -> None:
        """Wait for the turn of round ``number``, counted from 0."""
        if (number % 2 == 1) is self._first:
            self._wait()

    def end(self, number: int) -> None:
        """Pass the turn after round ``number``."""
        if (number % 2 == 0) is self._first:
            self._pass()

    def forfeit(self, number: int, rounds: int) -> None:
        """Take all turns from round ``number`` on, ``rounds`` in all, without doing anything: the other is not kept waiting."""
        for left in range(number, rounds):
            self.begin(left)
            self.end(left)

    def _pass(self) -> None:
        os.write(self._to, _TOKEN)

    def _wait(self) -> None:
        self._read(1)

    def _read(self, size: int) -> bytes:
        ready, _, _ = select.select([self._from], [], [], self._patience)
        data = os.read(self._from, size) if ready else b""
        if not data:
            raise PartnerStopped("the other process, with which this one took turns, has stopped")
        return data
