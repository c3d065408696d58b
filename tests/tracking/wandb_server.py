"""A W&B server of the few requests that sending a run makes, for tests of what arrives there."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "f" * 40


@dataclass
class ServedRun:
    """What the server has of a run."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False

    @property
    def first(self) -> dict[str, Any]:
        """The first upsert: the run as it was begun."""
        return self.upserts[0]

    @property
    def config(self) -> dict[str, Any]:
        """The newest config."""
        sent = [u["config"] for u in self.upserts if u.get("config")]
        values: dict[str, Any] = json.loads(sent[-1])
        return {key: item["value"] for key, item in values.items() if key != "_wandb"}

    @property
    def steps(self) -> list[int]:
        """The numbers of the lines in the order in which they came."""
        return [line["_step"] for line in self.lines]

    def curve(self, name: str) -> list[Any]:
        """A metric's values, in the order in which they came."""
        return [line[name] for line in self.lines if name in line]


@dataclass
class WandbServer:
    """The state of the server.

    Attributes:
        runs: By id.
        views: Saved workspaces by internal name.
        refuses: Answer everything with 401.
    """

    port: int = 0
    runs: dict[str, ServedRun] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuses: bool = False
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> ServedRun:
        """The one run of a name."""
        (found,) = [run for run in self.runs.values() if run.first["displayName"] == name]
        return found

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return self._upsert_run(variables)
        if "upsertView" in query:
            return self._upsert_view(variables)
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/upload"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        if "allViews" in query:
            view = self.views.get(variables["viewName"])
            edges = [{"node": view}] if view else []
            return {"project": {"allViews": {"edges": edges}}}
        if "bucket(" in query:
            return {"model": self._resume(variables["name"])}
        user = {"id": "U", "entity": "me", "username": "me", "teams": {"edges": []}, "flags": "{}"}
        return {"viewer": user, "serverInfo": {"features": []}}

    def _upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, ServedRun())
        run.upserts.append(variables)
        project = {"id": "P", "name": variables["project"], "entity": {"id": "E", "name": "me"}}
        bucket = {"id": f"B-{name}", "name": name, "displayName": variables["displayName"]}
        bucket |= {"project": project, "historyLineCount": len(run.lines), "config": "{}"}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _upsert_view(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.views
        kept = {"id": f"V-{name}", "name": name, "displayName": variables["displayName"]}
        self.views[name] = kept | {"spec": variables["spec"]}
        return {"upsertView": {"view": kept, "inserted": inserted}}

    def _resume(self, name: str) -> dict[str, Any]:
        model: dict[str, Any] = {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}}
        run = self.runs.get(name)
        if run is None:
            return model | {"bucket": None}
        bucket = {
            "id": f"B-{name}", "name": name, "displayName": run.first["displayName"],
            "summaryMetrics": json.dumps(run.summary), "config": run.upserts[-1]["config"] or "{}",
            "logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(run.lines),
            "historyTail": json.dumps([json.dumps(line) for line in run.lines[-1:]]),
            "eventsTail": "[]", "tags": [], "notes": "", "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        return model | {"bucket": bucket}

    def stream(self, id: str, sent: dict[str, Any]) -> None:
        run = self.runs[id]
        for name, part in sent.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                assert part["offset"] == len(run.lines), "a line would overwrite another"
                run.lines += lines
                run.arrived += [time.time()] * len(lines)
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        run.preempting = bool(sent.get("preempting", run.preempting))
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


@contextmanager
def serving() -> Iterator[WandbServer]:
    """Serve inside.

    Yields:
        The state.
    """
    server = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            server.requests.append(self.path)
            if server.refuses:
                self._answer(401, {"errors": [{"message": "user is not logged in"}]})
            elif self.path == "/graphql":
                asked = json.loads(body)
                data = server.graphql(asked["query"], asked.get("variables") or {})
                self._answer(200, {"data": data})
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
                self._answer(200, {})
            else:  # W&B's reports on itself
                self._answer(200, {})

        do_PUT = do_GET = do_POST

        def _answer(self, status: int, data: dict[str, Any]) -> None:
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Connections that W&B drops at its end are no news."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server.port = http.server_port
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
