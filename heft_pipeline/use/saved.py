"""Where a trained adapter is: a stage of a store, an exported folder, or a hub repository."""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.adapters.kind import AdapterSettings, adapter_folder
from heft_pipeline.command_line.warnings import warn
from heft_pipeline.declare_settings import check
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import read_untrusted
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.sources import Sources, hub_commit
from heft_pipeline.plan.stage_spec import StageSpec, from_json
from heft_pipeline.store.integrity import STAGE
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.inventory import named_stage

#: In an exported folder, the stages below the last one are folders in this one.
PARENTS = "parents"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: The model that ships with the package.
_SHIPPED = "builtin:tiny"
#: What is fetched of a repository; anything else in it is for people or other programs.
_FETCHED = [STAGE, "*.json", "*.safetensors", f"{PARENTS}/**/*.json", f"{PARENTS}/**/*.safetensors"]
_SHOULD_BE = "give a stage, a folder that `heft export` wrote, or a hub repository with one"


@dataclass(frozen=True)
class SavedAdapter:
    """A trained stage, and where its adapters and those below it are.

    Attributes:
        stage: The stage, its base model where it can be read from here.
        folders: A folder for each stage of its chain, first to last.
        store: The store that it is in; None for an exported folder.
    """

    stage: StageSpec
    folders: tuple[Path, ...]
    store: Store | None = None

    @property
    def adapters(self) -> list[tuple[AdapterSettings, Path]]:
        """All adapters with their folders, first to last."""
        return adapter_folders(self.stage, self.folders)


def adapter_folders(
    stage: StageSpec, folders: Sequence[Path]
) -> list[tuple[AdapterSettings, Path]]:
    """The adapters of a stage's chain with their folders, first to last.

    Args:
        stage: The stage.
        folders: A folder for each stage of its chain, first to last.
    """
    return [
        (one, adapter_folder(folder, one, part.adapters))
        for part, folder in zip(stage.chain, folders, strict=True)
        for one in part.adapters
    ]


def exported_folder(root: Path, stage: StageSpec, part: StageSpec) -> Path:
    """Where an exported folder has one of the stages that it holds.

    Args:
        root: The folder.
        stage: The stage that was exported.
        part: One of its chain.
    """
    number = stage.chain.index(part)
    return root if part is stage else root / PARENTS / f"{number}-{part.kind}"


def find_stage(name: str, output_dir: Path) -> tuple[StageSpec, Store]:
    """Find a stage by its folder or fingerprint.

    Args:
        name: A stage's folder, the first digits of its fingerprint, or ``SWEEP/RUN``.
        output_dir: Where to look for a fingerprint.

    Returns:
        The stage and the store that holds it.

    Raises:
        UserError: No stage matches, or several do.
    """
    folder = Path(name)
    there = (folder / STAGE).is_file()
    store = Store(folder.resolve().parent.parent if there else output_dir)
    return named_stage(store, name), store


def find_adapter(
    name: str | Path,
    *,
    output_dir: Path = Path("outputs"),
    revision: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> SavedAdapter:
    """Find a trained adapter.

    Args:
        name: A stage's folder or an exported one; the first digits of a fingerprint or
            ``SWEEP/RUN`` in ``output_dir``; or a hub repository.
        output_dir: The ``output_dir`` of sweeps.
        revision: A branch, tag or commit of a hub repository.
        model: The base model, where it is not where it was trained: a hub repository, a local
            folder, or ``builtin:tiny``.
        trust_remote_code: Whether the base model's own code may run. What an adapter says of that
            does not count.

    Raises:
        UserError: There is no such adapter, it is damaged, or its base model is not there.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if (folder / STAGE).is_file():
        found = _in_store(folder) or _exported(folder)
    elif folder.is_dir():
        raise UserError(f"{text} has no {STAGE}; {_SHOULD_BE}")
    elif _HUB_ID.fullmatch(text) and not _is_run(text, output_dir):
        found = _exported(_fetched(text, revision))
    elif text.startswith(("/", "./", "../", "~")):
        raise UserError(f"{text} is not a folder; {_SHOULD_BE}")
    else:
        stage, store = find_stage(text, output_dir)
        found = _stored(stage, store)
    if not found.stage.chain[-1].adapters:
        raise UserError(f"{found.stage.label} is the untouched model; it has no adapter")
    base = _base_model(found, model, trust_remote_code)
    return dataclasses.replace(found, stage=with_model(found.stage, base))


def _is_run(text: str, output_dir: Path) -> bool:
    return (output_dir / "sweeps" / text.split("/", 1)[0]).is_dir()


def _in_store(folder: Path) -> SavedAdapter | None:
    """A stage's folder in a store; None for a folder that was exported."""
    place = folder.resolve()
    if place.parent.name != "stages":
        return None
    store = Store(place.parent.parent)
    return _stored(named_stage(store, place.name), store)


def _stored(stage: StageSpec, store: Store) -> SavedAdapter:
    for part in stage.chain:
        store.require_whole(part)
    return SavedAdapter(stage, tuple(store.adapter(part) for part in stage.chain), store)


def _exported(folder: Path) -> SavedAdapter:
    """An exported folder, which a stranger may have written."""
    name = str(folder)
    try:
        stage = from_json(read_untrusted(folder / STAGE, name, _SHOULD_BE))
        for part in stage.chain:
            check(part.model, "model")
            check(part.data, "data")
            if "/" in part.model.attn_implementation or type(part.seed) is not int:
                raise UserError(f"{name}: {STAGE} names code of the hub, or a seed that is none")
            for adapter in part.adapters:
                check(adapter, adapter.kind)
        check(stage.evaluation, "evaluation")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{name}: {STAGE} does not hold the settings of a stage ({error}); export it again"
        ) from error
    folders = tuple(exported_folder(folder, stage, part) for part in stage.chain)
    if missing := [one for one in folders if not one.is_dir()]:
        raise UserError(f"{name} has no {missing[0].relative_to(folder)}; export it again")
    return SavedAdapter(stage, folders)


def _fetched(id: str, revision: str | None) -> Path:
    """The files of a hub repository, in the hub's cache."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    revision = revision or "main"
    try:
        hub_commit("model.id", id, revision)  # says what is wrong better than a download does
    except UserError as error:
        raise UserError(str(error).replace("model.id=", "")) from error
    try:
        hf_hub_download(id, STAGE, revision=revision)  # before anything large
        return Path(snapshot_download(id, revision=revision, allow_patterns=_FETCHED))
    except Exception as error:  # the network fails in many ways, and the advice is the same
        missing = isinstance(error, EntryNotFoundError)
        if missing and not isinstance(error, LocalEntryNotFoundError):  # that one: no connection
            raise UserError(f"the hub repository {id} has no {STAGE}; {_SHOULD_BE}") from None
        said = (str(error) or "no details").splitlines()[0]
        raise UserError(
            f"{id} could not be fetched ({type(error).__name__}: {said}); run the same command "
            "again, or give a local folder"
        ) from error


def _base_model(found: SavedAdapter, given: str | None, trust_remote_code: bool) -> ModelSettings:
    """The base model's settings, with a place where it can be read from here."""
    trained = found.stage.model
    if trained.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"{trained.name} runs code of its own; read it, and allow it with "
            "trust_remote_code=True (--trust-remote-code)"
        )
    wanted = given or trained.id
    if given is None and trained.revision is None and not Path(trained.id).is_dir():
        wanted = _SHIPPED  # its folder is another on each machine
        if Sources(_digests(found)).model(wanted, "main").content != trained.content:
            raise UserError(
                f"the base model {trained.id} is not here; say where it is with model=FOLDER "
                "(--model FOLDER), or name its hub repository"
            )
    source = Sources(_digests(found)).model(
        wanted, trained.revision if given is None and trained.revision else "main"
    )
    kinds = {text.split(":", 1)[0] for text in (source.content, str(trained.content))}
    if len(kinds) == 1 and source.content != trained.content:
        warn(
            f"{wanted} is not the model that {found.stage.label} was trained on "
            f"({trained.name}): its files differ, and so may every answer"
        )
    return dataclasses.replace(
        trained,
        id=source.location,
        revision=source.revision,
        content=source.content,
        trust_remote_code=trust_remote_code,
    )


def _digests(found: SavedAdapter) -> Path:
    """Where the digests of large files are remembered."""
    if found.store is not None:
        return found.store.digests
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "heft_pipeline" / "digests.json"


def with_model(stage: StageSpec, model: ModelSettings) -> StageSpec:
    """A stage with those below it on another model."""
    parent = with_model(stage.parent, model) if stage.parent else None
    return dataclasses.replace(stage, model=model, parent=parent)
