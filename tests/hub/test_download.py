"""Published files fetched from a hub: a real client, a server on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.published import backbones
from tests.published.server import HUB_ID, Served, client_environment, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "published") as server:
        yield server


def _conformance(*words: str, server: Served, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "conformance", *words],
        capture_output=True, text=True, timeout=300, check=False,
        env=client_environment(server, home),
    )  # fmt: skip


def _add(hub_id: str, server: Served, home: Path) -> subprocess.CompletedProcess[str]:
    words = ("hub", "add", hub_id, "--download", "--recipes", str(home / "recipes"))
    return _conformance(*words, server=server, home=home)


def _certify(*options: str, server: Served, home: Path) -> subprocess.CompletedProcess[str]:
    target = f"{backbones.__file__}:AnyBackbone"
    words = ("certify", target, "--id", "qwen25-0_5b-instruct", "--only", "PAD-01", *options)
    return _conformance(*words, server=server, home=home)


def test_the_config_and_the_tokenizer_are_fetched_and_no_weights(
    served: Served, tmp_path: Path
) -> None:
    run = _add(HUB_ID, served, tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "recipes" / "Qwen--Qwen2-0.5B-Instruct.toml").is_file()
    assert not [path for path in served.requested if "safetensors" in path]


def test_a_model_that_the_hub_does_not_have_is_exit_2(served: Served, tmp_path: Path) -> None:
    run = _add("nobody/nothing", served, tmp_path)
    assert run.returncode == 2
    assert "the published files of nobody/nothing could not be fetched" in " ".join(
        run.stderr.split()
    )
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "recipes").exists()


def test_certify_fetches_what_is_not_at_hand_if_asked_to(served: Served, tmp_path: Path) -> None:
    run = _certify("--download", server=served, home=tmp_path)
    assert run.returncode == 0, run.stderr
    assert f"fetching config and tokenizer {HUB_ID}" in run.stderr
    assert not [path for path in served.requested if "safetensors" in path]


def test_certify_fetches_nothing_unasked(served: Served, tmp_path: Path) -> None:
    run = _certify(server=served, home=tmp_path)
    assert run.returncode == 2
    assert not served.requested
