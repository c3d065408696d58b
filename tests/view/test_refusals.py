"""What the local web view refuses: other names, methods and users, and what is not in the store."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.report import write_report
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.view.web_server import is_own
from tests.report.made_sweeps import make_sweep
from tests.view.conftest import View, last_stage

SECRET = "a line of somebody else's file"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "10.0.0.1"]
)
def test_a_page_elsewhere_cannot_reach_it_under_its_own_name(view: View, host: str) -> None:
    got = view.get("/", Host=host)
    assert got.status == 403
    assert "Open this view at 127.0.0.1 or localhost" in got.shown
    assert "demo" not in got.shown


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9000", "LOCALHOST", "[::1]:80"])
def test_a_tunnel_may_give_it_another_port(view: View, host: str) -> None:
    assert view.get("/", Host=host).status == 200


def test_two_names_or_none_are_refused(view: View) -> None:
    for lines in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", view.port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
            assert b" 403 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_reading_is_allowed(view: View, method: str) -> None:
    got = view.get("/", method=method)
    assert got.status == 405
    assert got.headers["allow"] == "GET, HEAD"
    assert "only read" in got.shown


def test_it_listens_on_this_machine_alone(view: View) -> None:
    assert view.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/sweeps/..",
        "/sweeps/../../secret.txt",
        "/sweeps/%2e%2e/secret.txt",
        "/sweeps/made/figures/..%2f..%2f..%2fsecret.svg",
        "/sweeps/made/figures/%2e%2e/plan.json",
        "/sweeps/made/plan.json",
        "/sweeps/made/figures/..",
        "/sweeps/made%00/report.html",
        "/sweeps/..%5c..%5csecret.txt",
        "/stages/..",
        "/stages/%2fetc",
        "/stages/..%2fsweeps",
        "/look/..%2fweb_server.py",
        "/look/page.html.j2",
        "/live/stages/%2e%2e",
        "/live/sweeps/%2e%2e",
        "//etc/passwd",
        "/sweeps/%ff%fe",
    ],
)
def test_no_path_leads_out_of_the_store(made: Sweep, view: View, path: str) -> None:
    for name in ("secret.txt", "secret.svg"):
        (made.store.output_dir.parent / name).write_text(SECRET)
    got = view.get(path)
    assert got.status == 404
    assert SECRET not in got.text
    assert "Traceback" not in got.text


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Sweep, Path]:
    """A sweep with a report, and a file beside its store."""
    secret = tmp_path / "secret.txt"
    secret.write_text(f"{SECRET}\n")
    runs = [("method=lora epochs=1", 0.6), ("method=reft epochs=1", 0.7)]
    return make_sweep(tmp_path / "outputs", runs), secret


def test_a_stage_with_a_link_that_leads_out_is_not_read(
    linked: tuple[Sweep, Path], serve: Callable[[Path], View]
) -> None:
    sweep, secret = linked
    key = last_stage(sweep, "0-lora")
    (sweep.store.folder(key) / "stage.log").symlink_to(secret)
    view = serve(sweep.store.output_dir)
    page = view.get(f"/stages/{key}")
    assert page.status == 200
    assert "holds the link stage.log, which leads out of the store" in page.shown
    assert SECRET not in page.text
    page = view.get("/sweeps/made")
    assert f"the stage {key} holds the link stage.log" in page.shown
    assert "70.0%" in page.shown, "the other run is shown"
    assert "60.0%" not in page.shown


@pytest.mark.parametrize("name", [".copies/result.json", "predictions.parquet", "metrics.jsonl"])
def test_no_file_of_a_stage_may_be_a_link_that_leads_out(
    name: str, linked: tuple[Sweep, Path], serve: Callable[[Path], View]
) -> None:
    sweep, secret = linked
    key = last_stage(sweep, "0-lora")
    file = sweep.store.folder(key) / name
    file.unlink()
    file.symlink_to(secret)
    page = serve(sweep.store.output_dir).get(f"/stages/{key}")
    assert "leads out of the store, so it is not read" in page.shown
    assert "<svg" not in page.text


def test_a_folder_that_is_a_link_out_is_not_read(
    linked: tuple[Sweep, Path], serve: Callable[[Path], View], tmp_path: Path
) -> None:
    sweep, _ = linked
    outputs, elsewhere = sweep.store.output_dir, tmp_path / "elsewhere"
    other = make_sweep(elsewhere, [("method=heft epochs=1", 0.8)], name="hidden")
    (outputs / "sweeps" / "hidden").symlink_to(other.folder)
    key = last_stage(other, "0-heft")
    (outputs / "stages" / key).symlink_to(other.store.folder(key))
    view = serve(outputs)
    for path in ("/", "/sweeps/hidden", f"/stages/{key}"):
        page = view.get(path)
        assert "link that leads out of the store" in page.shown
        assert "80.0%" not in page.shown
    assert view.get("/sweeps/hidden/report.html").status == 404


def test_a_report_and_figures_that_are_links_out_are_not_there(
    linked: tuple[Sweep, Path], serve: Callable[[Path], View]
) -> None:
    sweep, secret = linked
    write_report([sweep], sweep.folder)
    view = serve(sweep.store.output_dir)
    figure = sweep.folder / "figures" / "evil.svg"
    figure.symlink_to(secret)
    assert view.get("/sweeps/made/figures/evil.svg").status == 404
    (sweep.folder / "report.html").unlink()
    (sweep.folder / "report.html").symlink_to(secret)
    got = view.get("/sweeps/made/report.html")
    assert got.status == 404
    assert SECRET not in got.text


def test_a_pipe_in_the_place_of_a_file_makes_nobody_wait(
    linked: tuple[Sweep, Path], serve: Callable[[Path], View]
) -> None:
    sweep, _ = linked
    key = last_stage(sweep, "0-lora")
    os.mkfifo(sweep.store.folder(key) / "stage.log")
    page = serve(sweep.store.output_dir).get(f"/stages/{key}")
    assert "holds stage.log, which is a pipe, a socket or a device" in page.shown


def test_a_link_within_the_store_is_followed(
    linked: tuple[Sweep, Path], serve: Callable[[Path], View]
) -> None:
    sweep, _ = linked
    one, two = (sweep.store.folder(last_stage(sweep, name)) for name in ("0-lora", "1-reft"))
    (one / "stage.log").write_text("said by the first\n")
    (two / "stage.log").symlink_to(one / "stage.log")
    page = serve(sweep.store.output_dir).get(f"/stages/{two.name}")
    assert "said by the first" in page.shown


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system names no users there")
def test_another_user_of_the_machine_is_refused(view: View) -> None:
    ask = (
        "import http.client; c = http.client.HTTPConnection('127.0.0.1', {}); "
        "c.request('GET', '/'); print(c.getresponse().status)"
    )
    command = [sys.executable, "-I", "-c", ask.format(view.port)]
    mine = subprocess.run(command, capture_output=True, text=True, check=True)
    assert mine.stdout.strip() == "200"
    if not os.access(sys.executable, os.X_OK) or _unreadable(sys.executable):
        command[0] = "/usr/bin/python3"
    theirs = subprocess.run(command, capture_output=True, text=True, check=False, user=65534)
    if theirs.returncode:
        pytest.skip(f"no Python that others may run: {theirs.stderr[-200:]}")
    assert theirs.stdout.strip() == "403"


def _unreadable(path: str) -> bool:
    """Whether others may not run a program, because a folder on the way to it is closed."""
    real = Path(path).resolve()
    return any(not parent.stat().st_mode & 0o001 for parent in [real, *real.parents])


def test_users_are_told_apart_by_what_the_system_says_of_connections(tmp_path: Path) -> None:
    table = tmp_path / "tcp"

    def line(near: str, far: str, user: int) -> str:
        return f"   1: {near} {far} 01 00000000:00000000 00:00000000 00000000 {user} 0 7 1 0\n"

    order = (lambda text: text) if sys.byteorder == "little" else (lambda _: "7F000001")
    here = order("0100007F")
    ends = ("127.0.0.1", 0xBEEF), ("127.0.0.1", 0x1F90)
    own, other = os.geteuid(), os.geteuid() + 4321
    near, far = f"{here}:1F90", f"{here}:BEEF"
    for user, allowed in ((own, True), (other, False), (0, True)):
        table.write_text("  sl  local_address\n" + line(near, far, own) + line(far, near, user))
        assert is_own(*ends, table=str(table)) is allowed
    assert is_own(*ends, table=str(tmp_path / "missing"))
