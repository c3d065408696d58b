"""Weights & Biases: one W&B run a run of the sweep."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heft_pipeline.config import TrackingConfig
from heft_pipeline.errors import UserError
from heft_pipeline.tracking.backend import TrackerError, Unreachable
from heft_pipeline.tracking.runs import TrackedRun

#: What $WANDB_MODE may say, and the mode that it means.
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
_MODES |= {"disabled": "disabled"}
#: A run that cannot be begun in this time is not waited for; retries go on in this time.
_INIT_SECONDS = 30.0


def logged_in() -> bool:
    """Whether W&B finds an API key: in the environment, in netrc, or in its settings.

    Raises:
        UserError: It finds one that is not of a key's form.
    """
    import wandb

    try:
        with _without_words():
            return bool(wandb.login(prompt=False, verify=False))
    except wandb.errors.AuthenticationError as error:
        raise UserError(f"{error}; run `wandb login`") from error


def resolve_mode(mode: str) -> str:
    """What ``tracking.mode`` comes to here.

    Args:
        mode: ``auto``, ``online``, ``offline`` or ``disabled``.

    Returns:
        ``online``, ``offline`` or ``disabled``. ``auto`` is what ``$WANDB_MODE`` says, else online
        where W&B finds an API key, else offline.

    Raises:
        UserError: Online is asked for without a key, or ``$WANDB_MODE`` has no meaning.
    """
    if mode == "auto":
        said = os.environ.get("WANDB_MODE")
        if said and said not in _MODES:
            raise UserError(f"WANDB_MODE={said} is not one of online, offline, disabled")
        mode = _MODES[said] if said else "online" if logged_in() else "offline"
    if mode == "online" and not logged_in():
        raise UserError(
            "W&B finds no API key, which tracking.mode=online needs: run `wandb login`, or use "
            "tracking.mode=offline"
        )
    return mode


class WandbBackend:
    """Weights & Biases, online or into folders for ``wandb sync``.

    Args:
        tracking: The settings; ``mode`` is resolved.
    """

    name = "W&B"

    def __init__(self, tracking: TrackingConfig) -> None:
        self._tracking = tracking
        self.live = tracking.mode == "online"

    @property
    def target(self) -> Mapping[str, Any]:
        """Mode, project and entity, and the server where it is not the usual one."""
        target = {
            "mode": self._tracking.mode,
            "project": self._tracking.project,
            "entity": self._tracking.entity,
        }
        server = os.environ.get("WANDB_BASE_URL")
        return target | ({"server": server} if server and self.live else {})

    def open(self, run: TrackedRun, folder: Path) -> "WandbWriter":
        """Begin a W&B run, or go on with it.

        Args:
            run: The run.
            folder: Its folder in the sweep; W&B's own files go there.

        Returns:
            Its writer; online it goes on after the last line that the server has.

        Raises:
            Unreachable: W&B cannot be reached or does not take the key.
            TrackerError: It does not take this run.
        """
        import wandb

        if not self.live:
            remove_offline(folder, run.id)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _without_words():
                made = wandb.init(
                    project=self._tracking.project,
                    entity=self._tracking.entity,
                    dir=str(folder),
                    id=run.id,
                    resume="allow" if self.live else None,
                    name=run.name,
                    group=run.sweep,
                    job_type=run.method,
                    tags=list(run.tags),
                    config=dict(run.config),
                    mode="online" if self.live else "offline",
                    settings=_settings(self._tracking.finish_seconds),
                    allow_val_change=True,
                )
        except wandb.errors.CommError as error:
            raise Unreachable(_one_line(error, run.id)) from error
        except Exception as error:  # W&B raises of many kinds; the run's own files are complete
            raise TrackerError(_one_line(error, run.id)) from error
        for prefix in run.prefixes:
            made.define_metric(f"{prefix}/step", hidden=True)
            made.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
        return WandbWriter(made, folder, self.live)

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether an offline run's folder is there; what is online is taken to be."""
        return self.live or Path(note["where"]).is_dir()


class WandbWriter:
    """A W&B run while it is being sent.

    Args:
        run: W&B's.
        folder: The run's folder in the sweep.
        live: Whether it is online.
    """

    def __init__(self, run: Any, folder: Path, live: bool) -> None:
        self._run, self._folder, self._live = run, folder, live
        # The W&B step is the line's number, so the server says which lines it has.
        self.next_line = int(run.starting_step)

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Send a line.

        Args:
            number: Its number in the run, which is its W&B step.
            values: Its values.
        """
        self._run.log(dict(values), step=number, commit=True)
        self.next_line = number + 1

    def finish(self, run: TrackedRun) -> str:
        """Send the summary and what else is wanted, and close the run.

        A failed run is closed as failed, an unfinished one as preempted: W&B shows it as running
        again when it goes on.

        Args:
            run: The run with all its lines sent.

        Returns:
            The run's address; the folder to sync where offline.

        Raises:
            TrackerError: Not everything was taken in time.
        """
        made = self._run
        try:
            self._log_extras(run)
            made.summary.update(dict(run.summary))
            if run.status in ("running", "incomplete"):
                made.mark_preempting()
            where = made.url if self._live else str(Path(made.dir).parent.resolve())
            with _without_words():
                made.finish(exit_code=0 if run.status == "complete" else 1)
        except TimeoutError as error:
            raise Unreachable("it did not take everything in time") from error
        except Exception as error:  # W&B raises of many kinds; the run's own files are complete
            raise TrackerError(_one_line(error, run.id)) from error
        if self._live:
            # The store has all that W&B's own copies hold, and an offline folder is now stale.
            shutil.rmtree(Path(made.dir).parent, ignore_errors=True)
            remove_offline(self._folder, run.id)
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
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)


def remove_offline(folder: Path, id: str) -> None:
    """Remove the folders of a run that was written offline before.

    Args:
        folder: The run's folder in the sweep.
        id: The run's W&B id.
    """
    for old in (folder / "wandb").glob(f"offline-run-*-{id}"):
        shutil.rmtree(old)


def _settings(seconds: float) -> Any:
    """Settings without what says nothing about training: this process only sends it.

    Names with ``x_`` are not promised by W&B; those that its version lacks are left out.
    """
    import wandb

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
        "init_timeout": min(_INIT_SECONDS, seconds),
        "finish_timeout": seconds,
        "finish_timeout_raises": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        # A request that hangs is given up in time to say so, and not only by init_timeout.
        "x_graphql_timeout_seconds": min(10.0, seconds),
        "x_graphql_retry_max": 2,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{key: value for key, value in asked.items() if key in known})


def _one_line(error: Exception, id: str) -> str:
    """What went wrong, the same for all runs that it happens to."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = text.replace(f" for run {id}", "").replace(id, "RUN")
    if re.search(r"\b40[13]\b|not logged in|permission", text):
        text += "; is it the right account? `wandb login --relogin`, or check tracking.entity"
    return text


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """Keep W&B's notes to the terminal away; what matters is raised."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
