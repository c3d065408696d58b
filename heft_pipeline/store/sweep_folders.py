"""A sweep's folder: its plan, its runs, its report."""

from pathlib import Path
from typing import Any

from heft_pipeline.command_line.warnings import warn
from heft_pipeline.errors import UserError
from heft_pipeline.files.locks import file_lock
from heft_pipeline.files.sealed import read_sealed, write_sealed
from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.run_names import named
from heft_pipeline.plan.stage_spec import require_version
from heft_pipeline.store.stage_folders import Store

PLAN = "plan.json"
_RUN_KEYS = {"name", "overrides", "method", "epochs", "stages"}
_STAGE_KEYS = {
    "model", "data", "adapters", "training", "evaluation", "seed", "parent", "device"
}  # fmt: skip


class Sweep:
    """The folder ``output_dir/sweeps/NAME``.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.folder.name

    @property
    def store(self) -> Store:
        """The store that holds the sweep's stages."""
        return Store(self.folder.parent.parent)

    def named(self, plan: Plan) -> Plan:
        """The plan with the names that its runs would have in this sweep; nothing is written."""
        return named(plan, self.known())

    def record(self, plan: Plan, **notes: Any) -> Plan:
        """Add runs to ``plan.json``; those that are there already are kept as they are.

        Several processes may do so at once. The plan also notes which stages were complete when
        they were first asked for, because the sweep reuses those.

        Args:
            plan: The runs, with short names.
            **notes: JSON-ready data that is kept beside the runs; the newest of each name.

        Returns:
            The plan with the runs' names in this sweep.

        Raises:
            UserError: The folder holds a sweep that another version wrote; it is left as it is.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / ".plan.lock"):
            known = self.known()
            if not known and (self.folder / PLAN).is_file():
                warn(
                    f"{self.folder / PLAN} {read_sealed(self.folder / PLAN).why}, and has no copy; "
                    "it is written anew with the runs of this command, and those of earlier ones "
                    "are in it again when they are run again, which trains nothing"
                )
            plan = named(plan, known)
            asked = plan.to_json()
            for run in asked["runs"]:
                run["command"] = notes.get("command")
            stages = known.get("stages", {})
            complete = known.get("complete_before", []) + [
                key for key in asked["stages"] if key not in stages and self.store.is_complete(key)
            ]
            runs = {run["name"]: run for run in known.get("runs", []) + asked["runs"]}
            data = {
                "sweep": self.name,
                **{key: known[key] for key in known if key not in asked},
                **notes,
                "complete_before": complete,
                "runs": list(runs.values()),
                "baselines": sorted({*known.get("baselines", []), *asked["baselines"]}),
                "stages": stages | asked["stages"],
            }
            write_sealed(self.folder / PLAN, data)
        return plan

    def _whole(self) -> dict[str, Any] | None:
        """What ``plan.json`` or its copy holds; None if there is none, or both are broken."""
        path = self.folder / PLAN
        found = read_sealed(path)
        if found.from_copy:
            warn(f"{path} {found.why}; its copy is used, and the sweep's command writes it anew")
        return found.data

    def accuracy(self, fingerprint: str) -> float:
        """The accuracy of a complete stage.

        Args:
            fingerprint: The stage's fingerprint.

        Returns:
            The share of the evaluated examples that it answers correctly.

        Raises:
            UserError: It is not complete.
        """
        result = self.store.result(fingerprint)
        if result is None:
            raise UserError(f"stage {fingerprint} is not complete")
        return float(result["accuracy"])

    def plan(self, *, any_version: bool = False) -> dict[str, Any]:
        """Read ``plan.json``.

        Args:
            any_version: Read one of another version too, to find its jobs and processes.

        Returns:
            ``sweep``, ``command``, ``launcher`` (its kind, settings and process),
            ``complete_before`` and ``baselines`` (fingerprints), ``runs`` and ``stages``.

        Raises:
            UserError: The folder has no plan, or one that is broken or another version wrote.
        """
        path = self.folder / PLAN
        if not path.is_file():
            raise UserError(f"{self.folder} is not a sweep: it has no {PLAN}")
        way_out = (
            "the stages are kept, and the sweep's command finds them: run it again with another "
            f"sweep=NAME, or remove {PLAN} first"
        )
        data = self._whole()
        if data is None:
            raise UserError(
                f"{path} {read_sealed(path).why}, and has no copy; every stage is kept: run the "
                "sweep's command again, which writes it anew"
            )
        if lacking := _lacking(data):
            raise UserError(
                f"{path} lacks {lacking}, so another version wrote it or it is damaged; {way_out}"
            )
        if any_version:
            return data
        try:
            for stage in data["stages"].values():
                require_version(stage)
                if lacking := ", ".join(sorted(_STAGE_KEYS - set(stage))):
                    raise UserError(f"{path} lacks a stage's {lacking}; {way_out}")
        except UserError as error:
            raise UserError(
                f"the sweep {self.name} ({self.folder}) cannot be read: {error}, "
                "under another sweep=NAME"
            ) from error
        return data

    def known(self) -> dict[str, Any]:
        """The plan so far; empty for a new sweep.

        Raises:
            UserError: The folder holds a sweep that another version wrote.
        """
        if self._whole() is None:
            return {}
        self.plan(any_version=True)  # says so if it lacks something
        try:
            return self.plan()
        except UserError as error:
            raise UserError(
                f"sweep={self.name}: {self.folder} holds a sweep that another version of "
                "heft_pipeline wrote, and runs of this version cannot be added to it; choose "
                "another sweep=NAME or output_dir=DIR (the old sweep is left as it is)"
            ) from error


def _lacking(plan: dict[str, Any]) -> str:
    """What a decoded ``plan.json`` of any version must have and does not; empty if it has all."""
    kinds = {"runs": list, "stages": dict, "complete_before": list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(plan.get(key), kind)]:
        return ", ".join(wrong)
    for run in plan["runs"]:
        if lacking := _RUN_KEYS - set(run if isinstance(run, dict) else ()):
            return f"a run's {', '.join(sorted(lacking))}"
        if lacking := set(run["stages"]) - set(plan["stages"]):
            return f"the stages {', '.join(sorted(lacking))} of {run['name']}"
    broken = [key for key, stage in plan["stages"].items() if not isinstance(stage, dict)]
    return f"the settings of stage {broken[0]}" if broken else ""


def find_sweep(name: str | None, output_dir: Path) -> Sweep:
    """Find a sweep.

    Args:
        name: Its name or its folder; None for the newest sweep.
        output_dir: Where to look for sweeps.

    Returns:
        The sweep.

    Raises:
        UserError: There is no such sweep; the message names the newest ones that there are.
    """
    sweeps = output_dir / "sweeps"
    if name is not None:
        folder = Path(name) if Path(name).is_dir() else sweeps / name
        if (folder / PLAN).is_file():
            return Sweep(folder.resolve())
        names = sorted(p.parent.name for p in sweeps.glob(f"*/{PLAN}"))
        raise UserError(
            f"there is no sweep {name} in {sweeps}; "
            + (f"there are {', '.join(names[-10:])}" if names else "set --output-dir")
        )
    plans = sorted(sweeps.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise UserError(f"there is no sweep in {sweeps}; set --output-dir")
    return Sweep(plans[-1].parent)
