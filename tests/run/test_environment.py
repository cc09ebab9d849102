"""Facts about the machine: a container's limit counts, not its host's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.run import environment


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 8 << 30), ("max\n", 8 << 30), (f"{4 << 30}\n", 4 << 30), (f"{1 << 62}\n", 8 << 30)],
)
def test_memory_is_what_the_container_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, expected: int
) -> None:
    meminfo, allowed = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    if limit is not None:
        allowed.write_text(limit)
    monkeypatch.setattr(environment, "_MEMINFO", meminfo)
    monkeypatch.setattr(environment, "_LIMITS", (allowed,))
    assert environment.memory("MemAvailable") == expected


def test_memory_may_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_MEMINFO", tmp_path / "absent")
    monkeypatch.setattr(environment, "_LIMITS", ())
    assert environment.memory("MemTotal") is None
