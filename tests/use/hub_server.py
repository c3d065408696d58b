"""A stand-in of the hub's API on this machine: repositories, uploads, commits and downloads."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"
COMMIT = "a" * 40


@dataclass
class Hub:
    """What the server holds.

    Attributes:
        files: Each repository's files.
        asked: The requests, as ``METHOD PATH``.
        private: The repositories that were made private.
        readers: Whether everyone may only read.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    readers: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    address: str = ""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    held: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._asked()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(auth-check|revision/\S+))?", path):
            repo = found[1]
            if repo not in self.held.files:
                self._no(404, "RepoNotFound")
            elif found[2] == "auth-check":
                self._json({})
            else:
                names = [{"rfilename": name} for name in sorted(self.held.files[repo])]
                self._json(
                    {
                        "id": repo,
                        "sha": COMMIT,
                        "siblings": names,
                        "private": repo in self.held.private,
                    }
                )
        elif found := re.fullmatch(r"/api/models/(\S+?)/tree/\S+", path):
            files = self.held.files.get(found[1], {})
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                    for name, content in files.items()
                ]
            )
        elif found := re.fullmatch(r"/(\S+?/\S+?)/resolve/(\w+)/(\S+)", path):
            self._file(found[1], found[3])
        else:
            self._no(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self._asked(), self._body()
        if self.held.readers or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._no(403 if self.held.readers else 401, "NotAllowed")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            wished = asked.get("private") or asked.get("visibility") == "private"
            if wished and repo not in self.held.files:  # one that is there stays what it is
                self.held.private.add(repo)
            self.held.files.setdefault(repo, {})
            self._json({"url": f"{self.held.address}/{repo}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self._json(
                {
                    "files": [
                        {
                            "path": one["path"],
                            "uploadMode": ("regular", "lfs")[".safetensors" in one["path"]],
                            "shouldIgnore": False,
                        }
                        for one in json.loads(body)["files"]
                    ]
                }
            )  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            self._lfs(json.loads(body))
        elif found := re.fullmatch(r"/api/models/(\S+?)/commit/\S+", path):
            self._commit(found[1], body)
        else:
            self._no(404, "EntryNotFound")

    def do_PUT(self) -> None:
        path, body = self._asked(), self._body()
        oid = path.rsplit("/", 1)[1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.held.objects[oid] = body
        self._json({})

    def _lfs(self, asked: dict[str, Any]) -> None:
        found = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.held.address}/objects/{one['oid']}"}},
            }
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": found})

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                self.held.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                self.held.files[repo][value["path"]] = self.held.objects[value["oid"]]
        address = f"{self.held.address}/{repo}/commit/{COMMIT}"
        self._json({"commitUrl": address, "commitOid": COMMIT, "pullRequestUrl": None})

    def _file(self, repo: str, name: str) -> None:
        content = self.held.files.get(repo, {}).get(name)
        if content is None:
            self._no(404, "EntryNotFound")
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self._send(content)

    def _asked(self) -> str:
        path = self.path.split("?")[0]
        self.held.asked.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, data: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._send(json.dumps(data).encode())

    def _no(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self._send(b"{}")

    def _send(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
