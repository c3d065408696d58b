"""Weights & Biases: one W&B run for each run of the sweep."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.plan.run_names import shortened
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.backend import TrackerError, Unreachable
from heft_pipeline.tracking.payload import TrackedRun, own_files

#: The most characters that W&B takes in a run's name or group, and in its job type or a tag.
NAME_LIMIT, LABEL_LIMIT = 128, 64
#: The longest time to begin a run, and for one request; a short tracking.finish_seconds lowers
#: both.
_INIT_SECONDS, _REQUEST_SECONDS = 30.0, 10.0


class WandbBackend:
    """Weights & Biases, online or in folders for ``wandb sync``.

    Args:
        tracking: The settings; ``mode`` is resolved.
    """

    name = "W&B"

    def __init__(self, tracking: TrackingSettings) -> None:
        self._tracking = tracking
        self.live = tracking.mode == "online"

    @property
    def target(self) -> Mapping[str, Any]:
        """Mode, project and entity, and the server if it is not the usual one."""
        target = {
            "mode": self._tracking.mode,
            "project": self._tracking.project,
            "entity": self._tracking.entity,
        }
        server = masked(os.environ.get("WANDB_BASE_URL", ""))
        return target | ({"server": server} if server and self.live else {})

    def see(self, sweep: Path, where: str) -> str:
        """The project's address online, and offline the commands that send the runs."""
        if self.live:
            return f" at {where.split('/runs/')[0]}"
        return (
            f" written offline. To send: wandb login, then\n"
            f"  python -m heft_pipeline.tracking {sweep} --mode online\n"
            f"  (or: wandb sync {sweep}/runs/*/wandb/offline-run-*)"
        )

    def open(self, run: TrackedRun, folder: Path) -> "WandbWriter":
        """Begin a W&B run, or continue it.

        Args:
            run: The run.
            folder: Its folder in the sweep; W&B's own files go there.

        Returns:
            Its writer; online, it continues after the last line that the server has.

        Raises:
            Unreachable: W&B cannot be reached or does not accept the key.
            TrackerError: W&B does not accept this run.
        """
        import wandb

        if not self.live:
            remove_copies(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with quiet():
                made = wandb.init(
                    project=self._tracking.project,
                    entity=self._tracking.entity,
                    dir=str(folder),
                    id=run.id,
                    resume="allow" if self.live else None,
                    name=shortened(run.name, NAME_LIMIT),
                    group=shortened(run.sweep, NAME_LIMIT),
                    job_type=shortened(run.method, LABEL_LIMIT),
                    tags=[shortened(tag, LABEL_LIMIT) for tag in run.tags],
                    config=dict(run.config),
                    mode="online" if self.live else "offline",
                    settings=_settings(self._tracking.finish_seconds),
                    allow_val_change=True,
                )
        except wandb.errors.CommError as error:
            raise Unreachable(_one_line(error, run.id)) from error
        except Exception as error:  # W&B raises many types; the run's own files are complete
            raise TrackerError(_one_line(error, run.id)) from error
        for prefix in run.prefixes:
            made.define_metric(f"{prefix}/step", hidden=True)
            made.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
        return WandbWriter(made, folder, self.live)

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether an offline run's folder still exists; an online run is assumed to."""
        return self.live or Path(note["where"]).is_dir()


class WandbWriter:
    """A W&B run while it is being sent.

    Args:
        run: The run's object in W&B's client.
        folder: The run's folder in the sweep.
        live: Whether it is online.
    """

    def __init__(self, run: Any, folder: Path, live: bool) -> None:
        self._run, self._folder, self._live = run, folder, live
        # A line's number is its W&B step, so the server's last step says which lines it has.
        self.next_line = int(run.starting_step)

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Send a line.

        Args:
            number: Its number in the run, which is its W&B step.
            values: Its values.
        """
        self._run.log(dict(values), step=number, commit=True)
        self.next_line = number + 1

    def flush(self) -> None:
        """Nothing: W&B sends lines by itself."""

    def finish(self, run: TrackedRun) -> str:
        """Send the summary and the optional extras, and close the run.

        A failed run is closed as failed, and an unfinished one as preempted: W&B shows it as
        running again when it continues.

        Args:
            run: The run; all its lines have been sent.

        Returns:
            The run's address online, and offline the folder to sync.

        Raises:
            TrackerError: W&B did not accept everything in time.
        """
        made = self._run
        try:
            self._log_extras(run)
            made.summary.update(dict(run.summary))
            if run.status in ("running", "incomplete"):
                made.mark_preempting()
            where = made.url if self._live else str(Path(made.dir).parent.resolve())
            with quiet():
                made.finish(exit_code=0 if run.status == "complete" else 1)
        except TimeoutError as error:
            raise Unreachable("it did not accept everything in time") from error
        except Exception as error:  # W&B raises many types; the run's own files are complete
            raise TrackerError(_one_line(error, run.id)) from error
        if self._live:
            # The store has everything that W&B's own copies hold, including offline ones.
            remove_copies(self._folder)
        return str(where)

    def _log_extras(self, run: TrackedRun) -> None:
        import wandb

        after_lines = len(run.lines)
        if run.predictions is not None and self.next_line <= after_lines:
            import pandas as pd

            table = wandb.Table(dataframe=pd.read_parquet(run.predictions))
            self._run.log({"predictions": table}, step=after_lines, commit=True)
        for prefix, stage, folder in run.adapters:
            artifact = wandb.Artifact(
                f"{prefix}-{stage.fingerprint}",
                type="adapter",
                description=stage.label,
                metadata={"kind": stage.kind, "fingerprint": stage.fingerprint},
            )
            for file in own_files(folder):
                artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
            self._run.log_artifact(artifact)


def remove_copies(folder: Path) -> None:
    """Remove W&B's own copies of a run, which can be made again from the store's files.

    Copies from when the run had other stages, and so another id, are removed as well, so that
    ``wandb sync`` does not send a run that the sweep no longer has.

    Args:
        folder: The run's folder in the sweep.
    """
    for old in (folder / "wandb").glob("*run-*"):
        shutil.rmtree(old, ignore_errors=True)


def _settings(seconds: float) -> Any:
    """W&B's settings, with everything off that would describe this process instead of training.

    Settings named ``x_...`` are internal to W&B; those that the installed version lacks are left
    out.
    """
    import wandb

    within = 0.8 * seconds  # leaves time to report that W&B did not answer
    asked = {
        "silent": True,
        "console": "off",
        "symlink": False,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "program": "heft_pipeline",
        "host": "",
        "reinit": "create_new",  # several runs are open at once while stages are trained
        "init_timeout": min(_INIT_SECONDS, within),
        "finish_timeout": within,
        "finish_timeout_raises": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        # A request that hangs times out on its own, with a reason, before init_timeout.
        "x_graphql_timeout_seconds": min(_REQUEST_SECONDS, within / 3),
        "x_graphql_retry_max": 1,
        "x_graphql_retry_wait_min_seconds": 1.0,
        "x_graphql_retry_wait_max_seconds": 1.0,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{key: value for key, value in asked.items() if key in known})


def _one_line(error: Exception, id: str) -> str:
    """What went wrong, in words that are the same for every run."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = masked(text.replace(f" for run {id}", "").replace(id, "RUN"))
    if re.search(r"\b40[13]\b|not logged in|permission", text):
        text += "; is it the right account? `wandb login --relogin`, or check tracking.entity"
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep W&B's messages off the terminal; problems are raised as exceptions.

    Yields:
        Nothing.
    """
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        yield
