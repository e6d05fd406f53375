"""A Hub on this machine that takes uploads: of what `huggingface_hub` asks a real one for, as much as it needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "a token that may write"


class Hub(ThreadingHTTPServer):
    """Its repositories with the visibility that was asked for, their files, and the large files that came in."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, str | None] = {}
        self.files: dict[str, bytes] = {}
        self.large: list[tuple[str, bytes]] = []
        self.drops = ""
        """What a path ends with whose next request is cut off without an answer."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client of another process needs."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def _answer(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer({"error": "Repository not found"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large.append((self.path.rpartition("/")[2], content))
        self._answer({})

    def do_POST(self) -> None:
        hub, path = self.server, self.path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.drops and path.endswith(hub.drops):
            hub.drops = ""
            self.close_connection = True
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repos.setdefault(name, asked.get("visibility"))
            self._answer({"url": f"{hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._answer({})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".onnx")) else "regular" for name in files}
            self._answer(
                {
                    "files": [
                        {"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()
                    ]
                }
            )
        elif path.endswith("/objects/batch"):
            there = {oid for oid, _ in hub.large}
            objects = json.loads(body)["objects"]
            for item in objects:
                if item["oid"] not in there:
                    item["actions"] = {"upload": {"href": f"{hub.url}/large/{item['oid']}"}}
            self._answer({"objects": objects})
        else:
            assert path.endswith("/commit/main")
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = dict(hub.large)[value["oid"]]
            repo = path.removeprefix("/api/models").removesuffix("/commit/main")
            self._answer({"commitUrl": f"{hub.url}{repo}/commit/{'0' * 40}", "commitOid": "0" * 40})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process is logged in to, as `HF_ENDPOINT` and `HF_TOKEN` do it where it starts with them."""
    with Hub() as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield served
        served.shutdown()
