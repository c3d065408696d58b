"""The store: a folder of stages keyed by fingerprint, shared by all sweeps."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.errors import UserError
from heft_pipeline.files.json_files import read_json, write_json
from heft_pipeline.files.locks import Lock, file_lock, holder, take
from heft_pipeline.files.process_notes import named
from heft_pipeline.files.replaced import flush, leftovers
from heft_pipeline.files.sealed import read_sealed, write_sealed
from heft_pipeline.plan.stage_spec import RESULT_VERSION, StageSpec, to_json
from heft_pipeline.store.integrity import (
    ADAPTER,
    MANIFEST,
    STAGE,
    Depth,
    forget_result,
    look,
    seal_result,
    set_aside,
)

FAILURE, LOCK = "failure.json", ".lock"
PROGRESS, FORGETTING = "progress.json", "forgetting.json"
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

    @property
    def digests(self) -> Path:
        """The file that remembers the digests of large files of models and data."""
        return self.output_dir / ".cache" / "digests.json"

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
        return self.folder(stage.fingerprint) / ADAPTER

    def is_complete(self, fingerprint: str) -> bool:
        """Whether a stage is finished: ``result.json`` is whole, and its files are as it says.

        Of the files, the sizes are looked at; :meth:`damage` looks more closely.
        """
        return self.result(fingerprint) is not None

    def result(self, fingerprint: str) -> dict[str, Any] | None:
        """A finished stage's ``result.json`` without its manifest; None for any other stage."""
        found = look(self.folder(fingerprint))
        if found.damage or found.result is None:
            return None
        return {key: value for key, value in found.result.items() if key != MANIFEST}

    def damage(self, fingerprint: str, depth: Depth = Depth.SIZES) -> Mapping[str, str]:
        """What is wrong with the files of a stage that was finished.

        Args:
            fingerprint: The stage's fingerprint.
            depth: How closely to look.

        Returns:
            What is wrong with which file; empty if nothing is, or if the stage is unfinished.
        """
        return look(self.folder(fingerprint), depth).damage

    def put_aside(self, fingerprint: str, depth: Depth) -> tuple[Mapping[str, str], Path | None]:
        """Move the damaged files of a finished stage away, so that it counts as unfinished.

        Args:
            fingerprint: The stage's fingerprint; its folder is there.
            depth: How closely to look.

        Returns:
            What was wrong with which file, and the folder that they are in now; nothing and None
            if a process holds the stage, or has mended it.
        """
        with self.free(fingerprint) as free:
            damage = self.damage(fingerprint, depth) if free else {}
            return damage, set_aside(self.folder(fingerprint), damage) if damage else None

    def require_whole(self, stage: StageSpec) -> None:
        """Refuse a finished stage whose files are not, to the last bit, what it wrote.

        Raises:
            UserError: It is not complete, or a file is missing or has changed.
        """
        folder = self.folder(stage.fingerprint)
        found = look(folder, Depth.ALL)
        if not found.damage and found.result is None:
            raise UserError(f"{stage.label} ({folder}) is not complete, so it cannot be used")
        for name, why in found.damage.items():
            raise UserError(
                f"{folder / name} {why}, so {stage.label} cannot be used; run the command of a "
                "sweep that needs it again, which makes it anew"
            )

    def failure(self, fingerprint: str) -> dict[str, Any] | None:
        """Why a stage's last attempt failed; None where it did not, or the note is broken."""
        return read_json(self.folder(fingerprint) / FAILURE)

    def state(self, fingerprint: str) -> str:
        """A stage's state, as its files say.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            ``complete``, ``running`` (a process holds it), ``damaged`` (it was complete, and its
            files have changed), ``failed``, ``interrupted`` (there is a checkpoint) or ``to do``.
        """
        folder = self.folder(fingerprint)
        found = look(folder)
        if found.result is not None and not found.damage:
            return "complete"
        if self.owner(fingerprint):
            return "running"
        if found.damage:
            return "damaged"
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
        flush(folder.parent)
        forget_result(folder)
        for one in (folder, folder / ADAPTER, folder / "checkpoint"):
            for part in leftovers(one):
                part.unlink(missing_ok=True)
        write_json(folder / STAGE, to_json(stage))
        (folder / FAILURE).unlink(missing_ok=True)
        return folder

    def complete(self, fingerprint: str, result: dict[str, Any]) -> None:
        """Mark a stage as finished, once its files are on disk, and remove its checkpoints.

        Args:
            fingerprint: The stage's fingerprint.
            result: What ``result.json`` is to hold beside the manifest, as JSON-ready data.
        """
        folder = self.folder(fingerprint)
        seal_result(folder, result)
        (folder / PROGRESS).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)

    def fail(self, fingerprint: str, failure: dict[str, Any]) -> None:
        """Note why a stage failed; the next attempt removes the note.

        Args:
            fingerprint: The stage's fingerprint.
            failure: What ``failure.json`` is to hold, as JSON-ready data.
        """
        said = {k: masked(v) if isinstance(v, str) else v for k, v in failure.items()}
        write_json(self.folder(fingerprint) / FAILURE, said)

    def text_losses(self, fingerprint: str) -> dict[str, dict[str, Any]]:
        """What a stage loses on texts that its task does not touch.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            For each text's digest, what :meth:`note_text_losses` wrote; empty where nothing did,
            or where the file is broken, so that it is written again.
        """
        found = read_sealed(self.folder(fingerprint) / FORGETTING).data or {}
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
        write_sealed(path, self.text_losses(fingerprint) | {digest: entry})

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
            no process holds it. See :func:`~heft_pipeline.files.locks.holder`.
        """
        return holder(self.folder(fingerprint) / LOCK)

    def forget_failure(self, fingerprint: str) -> None:
        """Remove the note of a stage's failure."""
        (self.folder(fingerprint) / FAILURE).unlink(missing_ok=True)

    @contextmanager
    def lock(self, fingerprint: str, on_wait: Callable[[str], None]) -> Iterator[Lock]:
        """Hold a stage, so that only one process at a time trains it; see :class:`Lock`.

        Args:
            fingerprint: The stage's fingerprint.
            on_wait: Called once before waiting, with the name of the process that holds it.

        Yields:
            The lock, which can be lost while it is held: see :meth:`Lock.check`.
        """
        folder = self.folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        lock = file_lock(folder / LOCK)
        if not take(lock):
            on_wait(_owner(folder))
            lock.acquire()
        try:
            yield lock
        finally:
            lock.release()

    @contextmanager
    def free(self, fingerprint: str) -> Iterator[bool]:
        """Hold a stage inside the block if no process holds it.

        Args:
            fingerprint: The fingerprint of a stage whose folder is there.

        Yields:
            Whether it is held now; if not, another process has it.
        """
        lock = file_lock(self.folder(fingerprint) / LOCK)
        held = take(lock)
        try:
            yield held
        finally:
            if held:
                lock.release()


def _owner(folder: Path) -> str:
    """The name of the process that holds a stage, which it writes just after taking the lock."""
    deadline = time.monotonic() + 2
    while (owner := holder(folder / LOCK)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return named(owner)
