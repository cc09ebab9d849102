"""As much of the hub as a snapshot takes, served on this machine: a real client, no network."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.published import write_published

HUB_ID = "Qwen/Qwen2-0.5B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Served(ThreadingHTTPServer):
    folder: Path
    requested: list[str]


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a snapshot takes: the list of files, and each of them."""

    server: Served

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


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A server of the published files that are written into `folder`, and of weights."""
    server = Served(("127.0.0.1", 0), _Hub)
    server.folder = write_published(folder)
    (server.folder / "model.safetensors").write_bytes(b"weights")
    server.requested = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_environment(server: Served, home: Path) -> dict[str, str]:
    """The environment of a process whose hub is this server, and whose cache is below `home`."""
    return {
        **{name: value for name, value in os.environ.items() if "OFFLINE" not in name},
        "HF_HOME": str(home / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
