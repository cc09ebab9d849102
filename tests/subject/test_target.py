from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance.errors import CannotAssess
from conformance.subject.target import resolve


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("name", ["once.py", "my-backbone.py", "json.py"])
def test_a_file_is_executed_once(tmp_path: Path, name: str) -> None:
    runs = tmp_path / "runs"
    (tmp_path / name).write_text(
        f"with open({str(runs)!r}, 'a') as runs:\n    runs.write('x')\n\n\ndef "
        f"build(llm_backbone_id): ...\n"
    )
    factories = {resolve(f"{tmp_path / name}:build", "an-id").factory for _ in range(2)}
    assert len(factories) == 1
    assert runs.read_text() == "x"


def test_a_module_that_fails_half_way_is_not_found_the_next_time(tmp_path: Path) -> None:
    place = tmp_path / "half_way.py"
    place.write_text(
        "import sys\n\n\ndef build(llm_backbone_id): ...\n\n\nsys.modules.pop(__name__)\nraise "
        "OSError('gone')\n"
    )
    for _ in range(2):
        with pytest.raises(CannotAssess, match="gone"):
            resolve(f"{place}:build", "an-id")
    assert "half_way" not in sys.modules
