"""A view that is served on a free port, and requests to it as a browser would send them."""

import http.client
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.view.web_server import ViewServer
from tests.report.made_sweeps import make_sweep


@dataclass(frozen=True)
class Got:
    """An answer: its status, its headers in lower case, and its text."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def shown(self) -> str:
        """The words of a page, as a reader sees them."""
        without = re.sub(r"<(style|script|svg)\b.*?</\1>|<[^>]*>", " ", self.text, flags=re.DOTALL)
        return " ".join(unescape(without).split())


class View:
    """A served view."""

    def __init__(self, server: ViewServer) -> None:
        self.server = server

    @property
    def port(self) -> int:
        return self.server.server_port

    def get(self, path: str, method: str = "GET", **headers: str) -> Got:
        """Send one request; the path is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return Got(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], View]]:
    """Serves a store until the tests end."""
    servers: list[ViewServer] = []

    def served(outputs: Path) -> View:
        server = ViewServer(outputs, 0)
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        servers.append(server)
        return View(server)

    yield served
    for server in servers:
        server.shutdown()
        server.server_close()


RUNS = [
    ("method=lora epochs=2", 0.7),
    ("method=reft epochs=2", 0.6),
    ("method=heft epochs=2", 0.75),
    ("method=heft epochs=2 seed=1", 0.72),
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep with one run to do, one failed, and a report; tests leave it as it is."""
    outputs = tmp_path_factory.mktemp("viewed")
    sweep = make_sweep(outputs, RUNS)
    runs = {run["name"]: run["stages"][-1] for run in sweep.plan()["runs"]}
    failed, todo = runs["1-reft"], runs["3-heft"]
    for key in (failed, todo):
        (sweep.store.folder(key) / "result.json").unlink()
    sweep.store.fail(failed, {"reason": "the loss is not finite", "time": 0.0})
    log = sweep.store.folder(failed) / "stage.log"
    log.write_text("2026-01-01 INFO begun\n\x1b[31mred\x1b[0m\x1b]0;owned\x07 ended\n")
    return sweep


@pytest.fixture(scope="session")
def view(made: Sweep, serve: Callable[[Path], View]) -> View:
    return serve(made.store.output_dir)


def last_stage(sweep: Sweep, run: str) -> str:
    """The fingerprint of a run's last stage."""
    (found,) = [one["stages"][-1] for one in sweep.plan()["runs"] if one["name"] == run]
    return str(found)
