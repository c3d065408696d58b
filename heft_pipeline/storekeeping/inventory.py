"""What a store holds, and which sweeps need it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.errors import UserError
from heft_pipeline.files.byte_sizes import disk_use
from heft_pipeline.files.json_files import read_json, require_json
from heft_pipeline.plan.stage_spec import StageSpec, from_json
from heft_pipeline.store.integrity import STAGE
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import PLAN, Sweep


@dataclass(frozen=True)
class Entry:
    """A stage in a store.

    Attributes:
        fingerprint: Its fingerprint, which is its folder's name.
        stage: Its settings; None where another version wrote them, or they are broken.
        state: See :meth:`~heft_pipeline.store.stage_folders.Store.state`.
        bytes: What its folder takes on disk.
        changed: When something in it was last written, in seconds since 1970.
        sweeps: The names of the sweeps whose runs need it.
    """

    fingerprint: str
    stage: StageSpec | None
    state: str
    bytes: int
    changed: float
    sweeps: tuple[str, ...]

    @property
    def label(self) -> str:
        """A name for people."""
        if self.stage is None:
            return "of another version, or broken"
        return f"{self.stage.label} on {self.stage.data.name}"

    @property
    def model(self) -> str:
        """The model's name."""
        return "?" if self.stage is None else str(self.stage.model.name)


def inventory(store: Store) -> list[Entry]:
    """All stages of a store, the newest first.

    Args:
        store: The store.

    Raises:
        UserError: There is no store.
    """
    require_store(store)
    users = sweeps_by_stage(store)
    found = []
    for folder in (store.output_dir / "stages").glob("*"):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        key, (size, changed) = folder.name, disk_use(folder)
        entry = Entry(key, read_stage(store, key), store.state(key), size, changed, users[key])
        found.append(entry)
    return sorted(found, key=lambda entry: -entry.changed)


def require_store(store: Store) -> None:
    """Refuse a folder that holds no store.

    Raises:
        UserError: It has no stages.
    """
    if not (store.output_dir / "stages").is_dir():
        raise UserError(f"{store.output_dir} holds no stages; give the output_dir of a sweep")


def read_stage(store: Store, fingerprint: str) -> StageSpec | None:
    """A stage as its ``stage.json`` says; None if that is missing, broken or of another version."""
    data = read_json(store.folder(fingerprint) / STAGE)
    try:
        return None if data is None else from_json(data)
    except (UserError, KeyError, TypeError, ValueError):
        return None


def sweeps_of(store: Store) -> list[Sweep]:
    """The sweeps beside a store, by name."""
    return [Sweep(path.parent) for path in sorted(store.output_dir.glob(f"sweeps/*/{PLAN}"))]


def sweeps_by_stage(store: Store) -> defaultdict[str, tuple[str, ...]]:
    """The names of the sweeps that need each stage, by fingerprint; none for any other key.

    Raises:
        UserError: A sweep's plan is broken, so that nobody knows what it needs.
    """
    found: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for sweep in sweeps_of(store):
        for key in sweep.plan(any_version=True)["stages"]:
            found[key] += (sweep.name,)
    return found


def find(store: Store, name: str) -> str:
    """The fingerprint of a stage.

    Args:
        store: The store.
        name: The fingerprint's first digits, the stage's folder, or ``SWEEP/RUN`` for the last
            stage of a run.

    Raises:
        UserError: No stage matches, or several do.
    """
    require_store(store)
    if (Path(name) / STAGE).is_file():
        name = Path(name).resolve().name
    found = sorted(p.name for p in (store.output_dir / "stages").glob("*") if p.is_dir())
    fitting = [key for key in found if name and key.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and "/" in name:
        return _last_stage(store, *name.split("/", 1))
    raise UserError(
        f"{name} is {'no stage' if not fitting else f'the start of {len(fitting)} stages'} in "
        f"{store.output_dir}; give the first digits of one of {_some(found)}, or SWEEP/RUN"
    )


def named_stage(store: Store, name: str) -> StageSpec:
    """The settings of a stage.

    Args:
        store: The store.
        name: See :func:`find`.

    Raises:
        UserError: No stage matches, or several do, or another version wrote it, or it is broken.
    """
    file = store.folder(find(store, name)) / STAGE
    return from_json(require_json(file, "run the command of a sweep that needs the stage again"))


def _last_stage(store: Store, sweep: str, run: str) -> str:
    named = [one for one in sweeps_of(store) if one.name == sweep]
    if not named:
        names = _some([one.name for one in sweeps_of(store)])
        raise UserError(f"{store.output_dir} has no sweep {sweep}; it has {names}")
    runs = {one["name"]: one for one in named[0].plan()["runs"]}
    if run not in runs:
        raise UserError(f"the sweep {sweep} has no run {run}; it has {_some(list(runs))}")
    return str(runs[run]["stages"][-1])


def _some(names: Iterable[str]) -> str:
    """The first few of some names."""
    names = list(names)
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") or "none"
