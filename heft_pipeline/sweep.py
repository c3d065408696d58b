"""A sweep's folder: its plan, its runs, its report."""

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from heft_pipeline.errors import UserError
from heft_pipeline.plan import Plan
from heft_pipeline.store import Store, write_json

PLAN = "plan.json"


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
        """The store that the sweep's stages are in."""
        return Store(self.folder.parent.parent)

    def record(self, plan: Plan, **notes: Any) -> None:
        """Add runs to ``plan.json``; a run of the same name is replaced.

        Several processes may do so at once. Which stages were complete when they were first
        asked for is noted: the sweep reuses those.

        Args:
            plan: The runs.
            **notes: JSON-ready; kept beside the runs, the newest of each.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".plan.lock"):
            known = self.plan() if (self.folder / PLAN).is_file() else {}
            asked = plan.to_json()
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
            write_json(self.folder / PLAN, data)

    def accuracy(self, fingerprint: str) -> float:
        """The accuracy of a complete stage.

        Args:
            fingerprint: The stage's.

        Returns:
            The share of evaluated examples that it answers rightly.

        Raises:
            UserError: It is not complete.
        """
        result = self.store.result(fingerprint)
        if result is None:
            raise UserError(f"stage {fingerprint} is not complete")
        return float(result["accuracy"])

    def plan(self) -> dict[str, Any]:
        """What ``plan.json`` holds.

        Returns:
            ``sweep``, ``command``, ``launcher`` (its kind, settings and process),
            ``complete_before`` and ``baselines`` (fingerprints), ``runs`` and ``stages``.

        Raises:
            UserError: The folder has no plan.
        """
        path = self.folder / PLAN
        if not path.is_file():
            raise UserError(f"{self.folder} is not a sweep: it has no {PLAN}")
        data: dict[str, Any] = json.loads(path.read_text())
        return data


def find_sweep(name: str | None, output_dir: Path) -> Sweep:
    """A sweep by its name.

    Args:
        name: The name or the folder; None for the newest.
        output_dir: Where sweeps are looked for.

    Returns:
        The sweep.

    Raises:
        UserError: There is none; the text names those that there are.
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
