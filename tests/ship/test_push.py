"""`compress export --push` against a hub on the loopback interface: what arrives is what was written."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from helpers import run_cli, save_tiny_model

NAME = "org/name"


class Hub:
    """The files of one model repository, None where there is none, and whether a token may write it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None
        self.private: bool | None = None
        self.writable = True
        self.url = ""

    def get(self, path: str) -> tuple[int, Any]:
        """The answer to a GET request."""
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "org", "auth": {"type": "access_token"}}
        if self.files is None:
            return 404, {"error": "RepoNotFound"}
        entries = [
            {"type": "file", "path": name, "size": len(raw), "oid": "0" * 40} for name, raw in self.files.items()
        ]
        siblings = [{"rfilename": name} for name in self.files]
        return 200, entries if "/tree/" in path else {"id": NAME, "sha": "0" * 40, "siblings": siblings, "tags": []}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """The answer to a POST request."""
        if path == "/api/repos/create":
            if not self.writable:
                return 403, {"error": "You may not create repositories in org"}
            self.files, self.private = self.files or {}, json.loads(body)["visibility"] == "private"
            return 200, {"url": f"{self.url}/{NAME}"}
        if path == f"/api/models/{NAME}/preupload/main":
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if path == f"/api/models/{NAME}/commit/main":
            assert self.files is not None
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{NAME}/commit/{'1' * 40}"}
        return 200, {"errors": [], "warnings": []}  # validation of the README's metadata


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_GET(self) -> None:
            self._answer(*found.get(urlparse(self.path).path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            self._answer(*found.post(urlparse(self.path).path, body))

        def _answer(self, status: int, value: Any) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_export_is_pushed_to_a_private_repository_of_its_own(hub: Hub, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "m", num_hidden_layers=1)
    token = "hf_not_a_real_token"
    home = str(tmp_path / "home")
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HOME": home}

    def pushed(out: str, *options: str) -> Any:
        command = ("export", str(model), str(tmp_path / out), "--format", "bf16", "--push", *options)
        return run_cli(*command, **environment)

    done = pushed("a", NAME)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.url}/{NAME}" in done.stderr
    assert hub.private is True
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    again = pushed("b", NAME)  # over an export of ours
    assert again.returncode == 0, again.stderr
    hub.files = {"model.safetensors": b"years of work"}
    refused = pushed("c", NAME)
    assert (refused.returncode, "did not make. Name another one" in refused.stderr) == (2, True)
    assert not (tmp_path / "c").exists()
    assert "write the repository as ORG/NAME" in pushed("c", "name").stderr
    hub.files, hub.writable = None, False
    late = pushed("d", NAME)
    assert late.returncode == 3
    assert f"is complete: try again with `hf upload {NAME}" in late.stderr
    assert (tmp_path / "d" / "export.json").is_file()
