"""A Hugging Face hub on the loopback interface: the few routes that reading data or a model takes, and every fault."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

REPOSITORY = "org/name"


class Hub:
    """Commits of one repository: `commits[sha][path] = content`; `main` names one. `faults` are served first, in turn.

    It is both a dataset and a model of that name. A fault is None, a status code, `drop` (half the body, then the
    connection is closed), `reset` (closed at once) or `stall` (no answer in time). `fault_paths` says on which requests
    they fall; `requests` logs what was asked, and `served` counts the bytes of each file that were sent. Without
    `ranges` it gives files as a whole, whatever is asked for.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = ""
        self.faults: list[int | str | None] = []
        self.fault_paths: tuple[str, ...] = ("/resolve/",)
        self.requests: list[str] = []
        self.served: Counter[str] = Counter()
        self.ranges = True
        self.url = ""

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit and make it main."""
        self.main = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.main] = files
        return self.main

    def take_fault(self, path: str) -> int | str | None:
        """The fault for this request, if one is due."""
        if self.faults and any(part in path for part in self.fault_paths):
            return self.faults.pop(0)
        return None


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` at `hub.url` while the block runs."""

    class Handler(_Handler):
        the_hub = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    the_hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.the_hub, unquote(urlparse(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        fault = hub.take_fault(path) if with_body else None
        if fault == "stall":
            time.sleep(1.5)
        if isinstance(fault, str) and fault != "drop":
            self.close_connection = True
        elif isinstance(fault, int):
            self._send(fault, b"", {})
        else:
            status, body, headers = self._route(path)
            self._send(status, body, headers, with_body=with_body, drop=fault == "drop")

    def _route(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        api = f"/api/{'models' if path.startswith('/api/models/') else 'datasets'}/{REPOSITORY}"
        for files in (f"/datasets/{REPOSITORY}/resolve/", f"/{REPOSITORY}/resolve/"):
            if path.startswith(files):
                revision, _, name = path.removeprefix(files).partition("/")
                return self._file(revision, name)
        if path.startswith(api + "/tree/"):
            revision, _, folder = path.removeprefix(api + "/tree/").partition("/")
            if "recursive=true" in urlparse(self.path).query.lower():
                return self._json([_entry(name, raw) for name, raw in self._files(revision).items()])
            return self._json(_children(self._files(revision), folder))
        if path == api or path.startswith(api + "/revision/"):
            revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
            sha = self.the_hub.main if revision == "main" else revision
            siblings = [{"rfilename": name} for name in self.the_hub.commits.get(sha, {})]
            return self._json({"id": REPOSITORY, "sha": sha, "tags": [], "siblings": siblings})
        return (
            404,
            b"",
            {"X-Error-Code": "RepoNotFound" if "/api/" in path or REPOSITORY not in path else "EntryNotFound"},
        )

    def _files(self, revision: str) -> dict[str, bytes]:
        return self.the_hub.commits[self.the_hub.main if revision == "main" else revision]

    def _file(self, revision: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        files = self._files(revision)
        if name not in files:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        sha = self.the_hub.main if revision == "main" else revision
        headers = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": sha}
        if name.endswith(".safetensors"):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(files[name]).hexdigest()}"'}
            headers |= {"X-Linked-Size": str(len(files[name]))}
        wanted = self.headers.get("range")
        if wanted is None or not self.the_hub.ranges:
            return 200, files[name], headers
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = files[name][int(first) : int(last) + 1 if last else None]
        headers["content-range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(files[name])}"
        return 206, part, headers

    def _json(self, value: Any) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"content-type": "application/json"}

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True, drop: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if with_body:
            sent = body[: len(body) // 2] if drop else body
            self.wfile.write(sent)
            self.the_hub.served[urlparse(self.path).path.rpartition("/")[2]] += len(sent)
        if drop:
            self.close_connection = True


def _children(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    prefix = folder + "/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for name, raw in files.items():
        if name.startswith(prefix):
            head, _, rest = name.removeprefix(prefix).partition("/")
            path = prefix + head
            found[head] = {"type": "directory", "path": path, "oid": "0" * 40} if rest else _entry(path, raw)
    return list(found.values())


def _entry(path: str, raw: bytes) -> dict[str, Any]:
    return {"type": "file", "size": len(raw), "path": path, "oid": "0" * 40}


def client_environment(hub: Hub, home: Path) -> dict[str, str]:
    """Variables of a process to which `hub` is the Hugging Face hub, with a cache of its own in `home`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_TOKEN": "hf_not_a_real_token",
    }
