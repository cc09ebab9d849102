from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.verdict.samples import small_catalogue


@pytest.fixture(autouse=True)
def a_small_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("catalogue")
    with small_catalogue(folder):
        yield folder
