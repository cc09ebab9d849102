"""Published files fetched from a hub: a real client, a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.published import write_published

pytestmark = pytest.mark.slow

HUB_ID = "Qwen/Qwen2.5-0.5B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Served(ThreadingHTTPServer):
    folder: Path
    requested: list[str]


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a snapshot takes: the list of files, and each of them."""

    server: _Served

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requested.append(path)
        if path.startswith(f"/api/models/{HUB_ID}"):
            names = [file.name for file in self.server.folder.iterdir()]
            siblings = [{"rfilename": name} for name in names]
            tree = [{"type": "file", "path": name, "size": 1, "oid": COMMIT} for name in names]
            document = tree if "/tree/" in path else {
                "id": HUB_ID, "modelId": HUB_ID, "sha": COMMIT, "siblings": siblings, "tags": [],
                "private": False, "downloads": 0,
            }  # fmt: skip
            return self._send(json.dumps(document).encode(), "application/json", body=body)
        file = self.server.folder / path.rpartition("/")[2]
        if path.startswith(f"/{HUB_ID}/resolve/") and file.is_file():
            return self._send(file.read_bytes(), "text/plain", body=body)
        self.send_error(404)
        return None

    def _send(self, content: bytes, kind: str, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[_Served]:
    server = _Served(("127.0.0.1", 0), _Hub)
    server.folder = write_published(tmp_path / "published")
    (server.folder / "model.safetensors").write_bytes(b"weights")
    server.requested = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _add(hub_id: str, server: _Served, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "conformance", "hub", "add", hub_id, "--download",
         "--recipes", str(home / "recipes")],
        capture_output=True, text=True, timeout=300, check=False,
        env={
            **{name: value for name, value in os.environ.items() if "OFFLINE" not in name},
            "HF_HOME": str(home / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        },
    )  # fmt: skip


def test_the_config_and_the_tokenizer_are_fetched_and_no_weights(
    served: _Served, tmp_path: Path
) -> None:
    run = _add(HUB_ID, served, tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "recipes" / "Qwen--Qwen2.5-0.5B-Instruct.toml").is_file()
    assert not [path for path in served.requested if "safetensors" in path]


def test_a_model_that_the_hub_does_not_have_is_exit_2(served: _Served, tmp_path: Path) -> None:
    run = _add("nobody/nothing", served, tmp_path)
    assert run.returncode == 2
    assert "the published files of nobody/nothing could not be fetched" in " ".join(
        run.stderr.split()
    )
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "recipes").exists()
