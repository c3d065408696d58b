"""Share an adapter on the Hugging Face hub, with a model card.

heft push ADAPTER REPO --license apache-2.0
"""

import argparse
import dataclasses
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec, to_json
from heft_pipeline.store.integrity import STAGE
from heft_pipeline.use import arguments
from heft_pipeline.use.export import LOAD, export
from heft_pipeline.use.model_card import model_card
from heft_pipeline.use.saved import SavedAdapter

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
#: pyreft's files are pickles, which can hold any code; the same weights are in safetensors files.
_PICKLES = "*.bin"
#: Base classes of what is raised where the network fails, whichever library the hub's uses.
_OF_THE_NETWORK = {"OSError", "TransportError", "RequestException"}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_push, words, elsewhere="choose another place with TMPDIR")


def _push(words: Sequence[str]) -> int:
    given = _parser().parse_args(words)
    if not _REPO.fullmatch(given.repo):
        raise UserError(f"{given.repo} is no repository of the hub; write OWNER/NAME")
    found = arguments.found(given)
    with tempfile.TemporaryDirectory(prefix="heft-push-") as temporary:
        folder = Path(temporary, "files") if given.dry_run is None else given.dry_run
        shared_folder(found, folder, given.repo, given.license)
        if given.dry_run is not None:
            print(f"{folder} has what would be shared as {given.repo}; nothing was sent")
            return 0
        address = upload(folder, given.repo, private=given.private, branch=given.branch)
    print(f"{found.stage.label} is shared at {address}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("push", "Share an adapter on the Hugging Face hub.")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME; made if it is not there")
    parser.add_argument("--license", required=True, metavar="LICENSE",
                        help="the hub's name for the licence that you give it, e.g. apache-2.0; "
                        "the base model's and the data's licences bind you, too")  # fmt: skip
    parser.add_argument("--private", action="store_true", help="only you can see it")
    parser.add_argument("--branch", default="main", help="a branch that is there")
    parser.add_argument("--dry-run", type=Path, metavar="DIR",
                        help="write it to a new folder, and send nothing")  # fmt: skip
    return parser


def shared_folder(found: SavedAdapter, to: Path, repo: str, license: str) -> None:
    """Write what is shared: the exported adapter and its model card, without paths of this machine.

    Args:
        found: The adapter.
        to: A new folder.
        repo: The repository, ``owner/name``.
        license: The licence.

    Raises:
        UserError: The adapter cannot be exported.
    """
    export(found, to)
    for file in [to / LOAD, *to.rglob(_PICKLES)]:
        file.unlink()
    shared = json.dumps(to_json(without_paths(found.stage)), indent=2)
    (to / STAGE).write_text(shared + "\n", encoding="utf-8")
    (to / "README.md").write_text(
        model_card(found, repo, license), encoding="utf-8", errors="backslashreplace"
    )


def without_paths(stage: StageSpec) -> StageSpec:
    """A stage that names local models, data and adapters by their names alone."""
    model, data = stage.model, stage.data
    if model.revision is None:
        model = dataclasses.replace(model, id=str(model.name))
    if data.revision is None:
        data = dataclasses.replace(data, path=str(data.name), location=str(data.name))
    adapters = tuple(
        dataclasses.replace(one, init_from=Path(one.init_from).name) if one.init_from else one
        for one in stage.adapters
    )
    parent = without_paths(stage.parent) if stage.parent else None
    return dataclasses.replace(stage, model=model, data=data, adapters=adapters, parent=parent)


def upload(folder: Path, repo: str, *, private: bool = False, branch: str = "main") -> str:
    """Send a folder to the hub.

    Args:
        folder: The folder.
        repo: The repository, which is made if it is not there.
        private: Whether a new repository is seen by its owner only.
        branch: A branch that is there.

    Returns:
        The repository's address.

    Raises:
        UserError: This account may not write there, or the hub does not answer.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set; unset it to share an adapter")
    api = HfApi(library_name="heft_pipeline")
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise UserError(
                f"{repo} is there already and everyone can see it; make it private on the hub, or "
                "leave --private out"
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=branch,
            commit_message="Share an adapter trained with heft_pipeline",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"this account may not write to {repo} ({status}); run `hf auth login` with a "
                "token that may write (or set HF_TOKEN), or name a repository of your own"
            ) from error
        raise UserError(f"the hub refused {repo}: {_first_line(error)}") from error
    except UserError:
        raise
    except Exception as error:  # the network fails in many ways, and the advice is the same
        names = {base.__name__ for base in type(error).__mro__}
        if not names & _OF_THE_NETWORK:
            raise
        raise UserError(
            f"the hub did not answer ({type(error).__name__}: {_first_line(error)}); run the same "
            "command again, or write the folder with --dry-run DIR and send it another way"
        ) from error
    return str(made)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no details").splitlines()[0]
