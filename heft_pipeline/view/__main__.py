"""The command line of the local web view.

    python -m heft_pipeline.view OUTPUTS [--port N] [--no-browser]

OUTPUTS is the ``output_dir`` of sweeps. Ctrl-C ends it.
"""

import argparse
import importlib
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.inventory import require_store
from heft_pipeline.view.web_server import ViewServer, serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the view until Ctrl-C, and return the exit status.

    Args:
        arguments: The arguments without the program's name; None for the process's own.
    """
    return run_command(_view, arguments)


def _view(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="heft view",
        description="Show sweeps in a browser, on this machine alone. Ctrl-C ends it.",
    )
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS", help="a sweep's output_dir")
    parser.add_argument("--port", type=_port, default=0, metavar="N",
                        help="default: 0, any that is free")  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="only say the address")
    given = parser.parse_args(arguments)
    require_store(Store(given.outputs))

    def ready(server: ViewServer) -> None:
        threading.Thread(target=_warm_up, args=[server], daemon=True).start()
        print(f"{given.outputs} is shown at {server.address} until Ctrl-C.", flush=True)
        if "SSH_CONNECTION" in os.environ:
            port = server.server_port
            print(
                "From your own machine, reach it with a tunnel, and open the same address there:\n"
                f"  ssh -N -L {port}:127.0.0.1:{port} THIS_MACHINE",
                flush=True,
            )
        elif not given.no_browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=[server.address], daemon=True).start()

    try:
        serve(given.outputs, given.port, ready)
    except KeyboardInterrupt:  # how it is meant to end
        print("The view has ended.")
    return 0


def _warm_up(server: ViewServer) -> None:
    """Import and read what takes a second or two, so that the first page need not."""
    importlib.import_module("heft_pipeline.evidence.intervals")
    server.looks.sweeps()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise UserError(f"--port {text}: give a number from 0 to 65535; 0 is any that is free")
    return int(text)


def _has_screen() -> bool:
    """Whether a browser would open a window, and not take the terminal."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


if __name__ == "__main__":
    sys.exit(main())
