"""The store: a folder of stages keyed by fingerprint, shared by all sweeps."""

import functools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import RESULT_VERSION, StageSpec, to_json
from heft_pipeline.store.json_files import read_json
from heft_pipeline.store.json_files import write_json as write_json
from heft_pipeline.store.locks import file_lock, has_ended, is_locked, named, take, this_process

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
            probe.write_bytes(b"")
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
            try:
                with path.open("rb") as file:
                    found = re.search(rb'"version":\s*(\d+)', file.read(_HEAD_BYTES))
            except PermissionError:  # somebody else's, and it is only counted
                continue
            count += found is not None and int(found.group(1)) != RESULT_VERSION
        return count

    def folder(self, fingerprint: str) -> Path:
        """A stage's folder, whether it exists or not."""
        return self.output_dir / "stages" / fingerprint

    def adapter(self, stage: StageSpec) -> Path:
        """A stage's adapter folder."""
        return self.folder(stage.fingerprint) / "adapter"

    def is_complete(self, fingerprint: str) -> bool:
        """Whether a stage is finished: its ``result.json``, which is written last, is whole."""
        return _is_whole(self.folder(fingerprint) / RESULT) is True

    def has_broken_result(self, fingerprint: str) -> bool:
        """Whether a stage was finished and its ``result.json`` is cut off or broken now.

        Such a stage counts as unfinished, and the next run of it trains it again.
        """
        return _is_whole(self.folder(fingerprint) / RESULT) is False

    def result(self, fingerprint: str) -> dict[str, Any] | None:
        """A finished stage's ``result.json``; None for any other."""
        found = read_json(self.folder(fingerprint) / RESULT)
        return found if found and "accuracy" in found else None

    def failure(self, fingerprint: str) -> dict[str, Any] | None:
        """Why a stage's last attempt failed; None where it did not, or the note is broken."""
        return read_json(self.folder(fingerprint) / FAILURE)

    def state(self, fingerprint: str) -> str:
        """A stage's state, as its files say.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            ``complete``, ``running`` (a process holds it), ``failed``, ``interrupted`` (there is
            a checkpoint) or ``to do``.
        """
        folder = self.folder(fingerprint)
        if self.is_complete(fingerprint):
            return "complete"
        if self.owner(fingerprint):
            return "running"
        if self.failure(fingerprint) is not None:
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
        if self.has_broken_result(stage.fingerprint):
            (folder / RESULT).unlink()
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
        found = read_json(self.folder(fingerprint) / FORGETTING) or {}
        return {digest: entry for digest, entry in found.items() if isinstance(entry, dict)}

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
        """What :meth:`note_progress` wrote last; None where there is nothing whole."""
        return read_json(self.folder(fingerprint) / PROGRESS)

    def owner(self, fingerprint: str) -> dict[str, Any] | None:
        """Which process holds a stage; nothing is written, and reading the files is enough.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            ``pid``, ``host``, ``since``, and under SLURM ``job_id`` and ``requeues``; None where
            no process holds it. Where the lock cannot be looked at, the process counts as holding
            it unless it is known to have ended.
        """
        folder = self.folder(fingerprint)
        owner = _owner_note(folder)
        if owner is None:
            return None
        held = is_locked(folder / LOCK)
        if held is None:
            held = not has_ended(owner)
        return owner if held else None  # else its process ended without removing the note

    def forget_failure(self, fingerprint: str) -> None:
        """Remove the note of a stage's failure."""
        (self.folder(fingerprint) / FAILURE).unlink(missing_ok=True)

    @contextmanager
    def lock(self, fingerprint: str, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold a stage, so that only one process at a time trains it.

        The operating system frees the lock when the process ends, however it ends; see
        :mod:`heft_pipeline.store.locks` for file systems without locks.

        Args:
            fingerprint: The stage's fingerprint.
            on_wait: Called once before waiting, with the name of the process that holds it.

        Yields:
            Nothing.
        """
        folder = self.folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        lock = file_lock(folder / LOCK)
        if not take(lock):
            on_wait(_owner(folder))
            lock.acquire()
        try:
            write_json(folder / OWNER, this_process())
            yield
        finally:
            (folder / OWNER).unlink(missing_ok=True)
            lock.release()


def _owner(folder: Path) -> str:
    """The name of the process that holds a stage, which it writes just after taking the lock."""
    deadline = time.monotonic() + 2
    while (owner := _owner_note(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return named(owner)


def _owner_note(folder: Path) -> dict[str, Any] | None:
    owner = read_json(folder / OWNER)
    return owner if owner and {"pid", "host"} <= set(owner) else None


def _is_whole(path: Path) -> bool | None:
    """Whether a file holds a stage's result; None where there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _holds_result(path, found.st_ino, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=65536)
def _holds_result(path: Path, _inode: int, _changed: int, _bytes: int) -> bool:
    """Whether a file that has not changed holds a result; large sweeps ask about each often."""
    return "accuracy" in (read_json(path) or {})
