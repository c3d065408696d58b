"""The server of the local web view: it answers this machine's user alone, and only reads."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from heft_pipeline.errors import UserError
from heft_pipeline.report.page_policy import LOOK, SORT_SCRIPT, content_policy
from heft_pipeline.view import web_pages
from heft_pipeline.view.guarded_store import GuardedSweep, read_inside
from heft_pipeline.view.prediction_pages import Asked
from heft_pipeline.view.stage_parts import StagePages
from heft_pipeline.view.sweep_looks import REPORT, Looks, sentence

HOST = "127.0.0.1"
#: The names that a browser on this machine has for it; a page elsewhere has another.
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_OWN = Path(__file__).parent / "templates"
_FIXED = {
    "report.css": (LOOK, "text/css"),
    "view.css": (_OWN / "view.css", "text/css"),
    "live.js": (_OWN / "live.js", "text/javascript"),
    "sort.js": (SORT_SCRIPT, "text/javascript"),
    "icon.svg": (_OWN / "icon.svg", "image/svg+xml"),
}
_KINDS = {".svg": "image/svg+xml", ".png": "image/png", ".pdf": "application/pdf",
          ".csv": "text/csv"}  # fmt: skip
#: A report's page and its figures have bounds of their own, far below.
_MOST_BYTES = 64 * 2**20
_MOST_SECONDS = 30.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_FIGURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Attributes:
        body: The bytes.
        kind: Their media type.
        status: The status.
        headers: Headers in place of, or beside, those that every answer has.
    """

    body: bytes
    kind: str = "text/html"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str | None] | None = None


class ViewServer(ThreadingHTTPServer):
    """Serves a store at an address of this machine.

    Args:
        output_dir: The store's folder.
        port: The port; 0 for any that is free.

    Raises:
        OSError: The port is taken, or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, output_dir: Path, port: int) -> None:
        self.looks = Looks(output_dir)
        self.stages = StagePages(self.looks)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing; a browser that goes away in the middle of an answer is no error."""

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """The answer to a request.

        Args:
            path: The address's path, still encoded.
            query: The query.
        """
        parts = [os.fsdecode(unquote_to_bytes(one)) for one in path.split("/")[1:]]
        match parts:
            case [""]:
                return _page(web_pages.sweeps_page(self.looks.sweeps()))
            case ["live", "sweeps"]:
                return _json(web_pages.sweeps_live(self.looks.sweeps()))
            case ["look", name] if name in _FIXED:
                file, kind = _FIXED[name]
                return Answer(file.read_bytes(), kind)
            case [("sweeps" | "live" | "stages"), *rest] if all(map(_is_name, rest)):
                return self._named(parts, query)
        return _missing("There is no such page here.")

    def _named(self, parts: list[str], query: Mapping[str, str]) -> Answer:
        match parts:
            case ["sweeps", name]:
                return self._sweep(name, query)
            case ["live", "sweeps", name]:
                look = self.looks.sweep(name)
                return _json(web_pages.sweep_live(look)) if look else _missing(_NO_SWEEP)
            case ["sweeps", name, "report.html"]:
                return self._report(name)
            case ["sweeps", name, "figures", file]:
                return self._figure(name, file)
            case ["stages", fingerprint]:
                return self._stage(fingerprint, Asked.read(query), live=False)
            case ["live", "stages", fingerprint]:
                return self._stage(fingerprint, Asked(), live=True)
        return _missing("There is no such page here.")

    def _sweep(self, name: str, query: Mapping[str, str]) -> Answer:
        look = self.looks.sweep(name)
        if look is None:
            return _missing(_NO_SWEEP)
        return _page(web_pages.sweep_page(look, Asked.read(query).page))

    def _stage(self, fingerprint: str, asked: Asked, live: bool) -> Answer:
        store = self.stages.find(fingerprint)
        if store is None:
            return _missing("There is no such stage here; it may not have begun yet.")
        page = self.stages.make(store, fingerprint, asked)
        if live:
            return _json(web_pages.stage_live(page))

        def other(number: int) -> str:
            shown = page.predictions.value.asked if page.predictions.value else asked
            return web_pages.query_of(shown.query(number))

        return _page(web_pages.stage_page(page, other))

    def _report(self, name: str) -> Answer:
        body = self._file(name, REPORT)
        policy = content_policy(SORT_SCRIPT.read_text(encoding="utf-8"), linked=True)
        policy += "; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
        return Answer(body, headers={"Content-Security-Policy": policy})

    def _figure(self, name: str, file: str) -> Answer:
        kind = _KINDS.get(Path(file).suffix)
        if kind is None:
            return _missing("There is no such figure here.")
        body = self._file(name, f"figures/{file}")
        # The report has an origin of its own, and is to show them.
        apart = {"Cross-Origin-Resource-Policy": None, "Content-Security-Policy": _FIGURE_POLICY}
        return Answer(body, kind, headers=apart)

    def _file(self, name: str, file: str) -> bytes:
        folder = self.looks.output_dir / "sweeps" / name
        return read_inside(GuardedSweep(folder).folder / file, self.looks.output_dir, _MOST_BYTES)


_NO_SWEEP = "There is no such sweep here."


def _is_name(text: str) -> bool:
    """Whether a part of an address can be a file's name."""
    return text not in ("", ".", "..") and not re.search(r"[/\\\0]", text)


def _page(text: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(text.encode("utf-8", "replace"), status=status)


def _json(data: Any) -> Answer:
    return Answer(json.dumps(data).encode(), "application/json")


def _missing(text: str) -> Answer:
    return _refusal(HTTPStatus.NOT_FOUND, text)


def _refusal(status: HTTPStatus, text: str) -> Answer:
    return _page(web_pages.message_page(status, text), status)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    server_version, sys_version = "heft-view", ""
    protocol_version = "HTTP/1.1"
    timeout = _MOST_SECONDS

    def do_GET(self) -> None:
        """Answer."""
        self._send(self._made())

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._send(self._made())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request, or one that would change something."""
        self.close_connection = True
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:  # which http.server says of any other method
            status, message = HTTPStatus.METHOD_NOT_ALLOWED, "This view is only read: use GET."
        self._send(_refusal(status, message or status.phrase))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing; the terminal has the address alone."""

    def _made(self) -> Answer:
        if {"Content-Length", "Transfer-Encoding"} & set(self.headers):
            self.close_connection = True  # what follows is not read
        if not _is_local(self.headers.get_all("Host") or []):
            self.close_connection = True
            names = " or ".join(_NAMES[:2])
            return _refusal(HTTPStatus.FORBIDDEN, f"Open this view at {names}, and no other name.")
        if not is_own(self.client_address, self.connection.getsockname()):
            self.close_connection = True
            said = "This view is another user's; start your own."
            return _refusal(HTTPStatus.FORBIDDEN, said)
        return self._found()

    def _found(self) -> Answer:
        try:
            split = urlsplit(self.path)
            query = dict(parse_qsl(split.query, errors="replace", max_num_fields=20))
            return self.server.answer(split.path, query)
        except (FileNotFoundError, NotADirectoryError):
            return _missing("There is no such file here.")
        except UserError as error:
            return _refusal(HTTPStatus.NOT_FOUND, f"{sentence(error)}.")
        except Exception as error:  # one page that cannot be made is not the end of the others
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{sentence(error)}.")

    def _send(self, answer: Answer) -> None:
        headers: dict[str, str | None] = {
            "Content-Type": f"{answer.kind}; charset=utf-8",
            "Content-Length": str(len(answer.body)),
            "Content-Security-Policy": _POLICY,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            **({"Allow": "GET, HEAD"} if answer.status == HTTPStatus.METHOD_NOT_ALLOWED else {}),
            **({"Connection": "close"} if self.close_connection else {}),
            **(answer.headers or {}),
        }
        self.send_response(answer.status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _is_local(hosts: list[str]) -> bool:
    """Whether a request's ``Host`` is a name of this machine; a tunnel may have another port."""
    return len(hosts) == 1 and re.sub(r":\d{1,5}$", "", hosts[0].strip()).lower() in _NAMES


def is_own(client: tuple[str, int], server: tuple[str, int], table: str = "/proc/net/tcp") -> bool:
    """Whether a connection comes from a process of this process's user, or of root.

    On a machine that people share, others can connect to its ports, too.

    Args:
        client: The connection's far end.
        server: Its near end.
        table: What the system says of connections; where it says nothing, all are taken.
    """
    ends = [f"{_reversed_hex(host)}:{port:04X}" for host, port in (client, server)]
    try:
        lines = Path(table).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return True
    for line in lines:
        fields = line.split()
        if len(fields) > 7 and fields[1:3] == ends and fields[7].isdigit():
            return int(fields[7]) in (os.geteuid(), 0)
    return True


def _reversed_hex(host: str) -> str:
    """An address as Linux writes it there, in this machine's order of bytes."""
    import socket
    import sys

    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


def serve(output_dir: Path, port: int, ready: Callable[[ViewServer], None]) -> None:
    """Serve a store until the process is interrupted.

    Args:
        output_dir: The store's folder.
        port: The port; 0 for any that is free.
        ready: Called when browsers can connect.

    Raises:
        UserError: The port is taken.
    """
    try:
        server = ViewServer(output_dir, port)
    except OSError as error:
        raise UserError(
            f"port {port} of this machine cannot be used ({error.strerror}); give another with "
            "--port N, or --port 0 for one that is free"
        ) from error
    with server:
        ready(server)
        server.serve_forever(poll_interval=0.2)
