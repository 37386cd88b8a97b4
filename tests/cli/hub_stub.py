"""A loopback server that speaks as much of the Hugging Face Hub's protocol as uploads and downloads of files need."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

COMMIT = "a" * 40


class Hub:
    """The files of the one repository, what was asked for, and a size to claim in place of the true one."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.claimed: int | None = None
        self.url = ""


@contextlib.contextmanager
def serving(cache: Path) -> Iterator[Hub]:
    """The hub that huggingface_hub talks to inside the block, as HF_ENDPOINT and HF_HUB_CACHE would tell it."""
    hub, constants = Hub(), huggingface_hub.constants

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, code: int, content: Any, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def do_POST(self) -> None:
            body = self.body()
            hub.asked.append(("POST", self.path))
            if self.path.endswith("/repos/create"):
                self.answer(200, {"url": f"{hub.url}/me/agent", "name": "me/agent", "id": "me/agent"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer(200, {"files": [{"path": name, **plain} for name in names]})
            elif "/commit/" in self.path:
                for operation in map(json.loads, body.splitlines()):
                    if operation["key"] == "file":
                        hub.files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
                address = f"{hub.url}/me/agent/commit/{COMMIT}"
                self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})
            else:
                self.answer(200, {"errors": [], "warnings": []})

        def do_GET(self) -> None:
            hub.asked.append((self.command, self.path))
            if "/resolve/" in self.path:
                content = hub.files[self.path.split(f"/resolve/{COMMIT}/")[1]]
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(200, content, ETag=tag, X_Repo_Commit=COMMIT)
            elif "/me/agent" in self.path:
                files = [
                    {"rfilename": name, "size": hub.claimed or len(content), "blobId": "b"}
                    for name, content in hub.files.items()
                ]
                self.answer(200, {"id": "me/agent", "sha": COMMIT, "siblings": files, "private": False, "tags": []})
            else:
                self.answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
            )
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
            patch.setenv("HF_TOKEN", "x")
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
