"""The store: a folder of stages keyed by fingerprint, shared by all sweeps."""

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import RESULT_VERSION, StageSpec, to_json

RESULT, STAGE, FAILURE, LOCK, OWNER = (
    "result.json",
    "stage.json",
    "failure.json",
    ".lock",
    ".owner.json",
)
PROGRESS = "progress.json"
FORGETTING = "forgetting.json"
#: How much of a ``stage.json`` is read to find its version, which is its second key.
_HEAD_BYTES = 200


class Store:
    """The stages in ``output_dir``.

    Args:
        output_dir: The folder that everything is written to.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir

    @property
    def tokenized(self) -> Path:
        """The folder of tokenised tasks, each named after its content."""
        return self.output_dir / ".cache" / "tokenized"

    def require_writable(self) -> None:
        """Create the store's folders.

        Raises:
            UserError: They cannot be created or written to.
        """
        probe = self.output_dir / "stages" / f".probe-{os.getpid()}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"output_dir={self.output_dir} cannot be written to ({error.strerror}); choose "
                "another folder with output_dir=DIR"
            ) from error

    def other_versions(self) -> int:
        """How many stages were written by a version of this project whose stages are not read.

        Returns:
            The number of stage folders with a ``stage.json`` of another ``RESULT_VERSION``. Their
            fingerprints differ from all of this version's, so they are neither used nor changed.
        """
        count = 0
        for path in self.output_dir.glob(f"stages/*/{STAGE}"):
            with path.open("rb") as file:
                found = re.search(rb'"version":\s*(\d+)', file.read(_HEAD_BYTES))
            count += found is not None and int(found.group(1)) != RESULT_VERSION
        return count

    def folder(self, fingerprint: str) -> Path:
        """A stage's folder, whether it exists or not."""
        return self.output_dir / "stages" / fingerprint

    def adapter(self, stage: StageSpec) -> Path:
        """A stage's adapter folder."""
        return self.folder(stage.fingerprint) / "adapter"

    def is_complete(self, fingerprint: str) -> bool:
        """Whether a stage is finished: its ``result.json``, which is written last, exists."""
        return (self.folder(fingerprint) / RESULT).is_file()

    def result(self, fingerprint: str) -> dict[str, Any] | None:
        """A finished stage's ``result.json``; None for any other."""
        return _read(self.folder(fingerprint) / RESULT)

    def failure(self, fingerprint: str) -> dict[str, Any] | None:
        """Why a stage's last attempt failed; None where it did not."""
        return _read(self.folder(fingerprint) / FAILURE)

    def state(self, fingerprint: str) -> str:
        """A stage's state, as its files say.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            ``complete``, ``running`` (a process holds it), ``failed``, ``interrupted`` (there is
            a checkpoint) or ``to do``.
        """
        folder = self.folder(fingerprint)
        if (folder / RESULT).is_file():
            return "complete"
        if self.owner(fingerprint):
            return "running"
        if (folder / FAILURE).is_file():
            return "failed"
        return "interrupted" if (folder / "checkpoint").is_dir() else "to do"

    def begin(self, stage: StageSpec) -> Path:
        """Create a stage's folder with its ``stage.json``.

        Args:
            stage: The stage.

        Returns:
            The folder.
        """
        folder = self.folder(stage.fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STAGE, to_json(stage))
        (folder / FAILURE).unlink(missing_ok=True)
        return folder

    def complete(self, fingerprint: str, result: dict[str, Any]) -> None:
        """Mark a stage as finished and remove its checkpoints.

        Args:
            fingerprint: The stage's fingerprint.
            result: What ``result.json`` is to hold, as JSON-ready data.
        """
        folder = self.folder(fingerprint)
        write_json(folder / RESULT, result)
        (folder / PROGRESS).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)

    def fail(self, fingerprint: str, failure: dict[str, Any]) -> None:
        """Note why a stage failed; the next attempt removes the note.

        Args:
            fingerprint: The stage's fingerprint.
            failure: What ``failure.json`` is to hold, as JSON-ready data.
        """
        write_json(self.folder(fingerprint) / FAILURE, failure)

    def text_losses(self, fingerprint: str) -> dict[str, dict[str, Any]]:
        """What a stage loses on texts that its task does not touch.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            For each text's digest, what :meth:`note_text_losses` wrote; empty where nothing did,
            or where the file is broken, so that it is written again.
        """
        try:
            return _read(self.folder(fingerprint) / FORGETTING) or {}
        except ValueError:
            return {}

    def note_text_losses(self, fingerprint: str, digest: str, entry: dict[str, Any]) -> None:
        """Add to a stage's ``forgetting.json``; the caller holds the stage's lock.

        Args:
            fingerprint: The stage's fingerprint.
            digest: The digest of the text.
            entry: ``text`` (its name), and either ``windows``, ``tokens`` and ``losses`` (the mean
                loss per token of each window, in nats) or ``why`` there are none.
        """
        path = self.folder(fingerprint) / FORGETTING
        write_json(path, self.text_losses(fingerprint) | {digest: entry})

    def note_progress(self, fingerprint: str, note: dict[str, Any]) -> None:
        """Note how far a stage has come, for displays of progress.

        Args:
            fingerprint: The stage's fingerprint.
            note: What ``progress.json`` is to hold, as JSON-ready data.
        """
        write_json(self.folder(fingerprint) / PROGRESS, note, durable=False)

    def progress(self, fingerprint: str) -> dict[str, Any] | None:
        """What :meth:`note_progress` wrote last; None where there is nothing."""
        return _read(self.folder(fingerprint) / PROGRESS)

    def owner(self, fingerprint: str) -> dict[str, Any] | None:
        """Which process holds a stage.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            ``pid``, ``host``, ``since``, and under SLURM ``job_id`` and ``requeues``; None where
            no process holds it.
        """
        folder = self.folder(fingerprint)
        owner = _read(folder / OWNER)
        if owner is None:
            return None
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return owner
        lock.release()  # its process ended without removing the note
        return None

    def forget_failure(self, fingerprint: str) -> None:
        """Remove the note of a stage's failure."""
        (self.folder(fingerprint) / FAILURE).unlink(missing_ok=True)

    @contextmanager
    def lock(self, fingerprint: str, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold a stage, so that only one process at a time trains it.

        The operating system frees the lock when the process ends, however it ends.

        Args:
            fingerprint: The stage's fingerprint.
            on_wait: Called once before waiting, with the name of the process that holds it.

        Yields:
            Nothing.
        """
        folder = self.folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait(_owner(folder))
            lock.acquire()
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            if "SLURM_JOB_ID" in os.environ:
                owner["job_id"] = os.environ["SLURM_JOB_ID"]
                owner["requeues"] = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            write_json(folder / OWNER, owner)
            yield
        finally:
            (folder / OWNER).unlink(missing_ok=True)
            lock.release()


def write_json(path: Path, data: Any, durable: bool = True) -> None:
    """Write JSON so that readers see either the old file or the whole new one.

    Args:
        path: The file.
        data: JSON-ready data.
        durable: Whether to wait until the file is on disk.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as stream:
        json.dump(data, stream, indent=2)
        stream.write("\n")
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    partial.replace(path)


def _owner(folder: Path) -> str:
    """The name of the process that holds a stage, which it writes just after taking the lock."""
    deadline = time.monotonic() + 2
    while (owner := _read(folder / OWNER)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError):
        data: dict[str, Any] = json.loads(path.read_text())
        return data
    return None
