"""Where the published files of a model are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.hub.sources import cache_named_in


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path.home() / ".cache" / "huggingface" / "hub")),
    ],
)
def test_the_librarys_cache_is_where_its_variables_say(
    environment: dict[str, str], place: str
) -> None:
    assert str(cache_named_in(environment)) == place
