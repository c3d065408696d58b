"""Where models and data come from, and what exactly they are.

A local folder is identified by the SHA-256 of the files that are read from it, and of no others. A
hub repository is identified by its commit. So new content under an old name is never mistaken for
the old content.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.command_line.warnings import warn
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.split_files import files_read
from heft_pipeline.errors import UserError
from heft_pipeline.files.sealed import read_sealed, write_sealed
from heft_pipeline.models.checkpoint_files import model_files

PACKAGE = Path(__file__).resolve().parents[1]
BUILTIN = {
    "builtin:tiny": PACKAGE / "models" / "tiny",
    "builtin:demo": PACKAGE / "data" / "demo" / "files",
}
#: Digests of files of at least this size are remembered between invocations.
_REMEMBER_BYTES = 32 * 2**20
#: Finds the files of a folder that are read.
_Files = Callable[[Path], Iterable[Path]]


@dataclass(frozen=True)
class Source:
    """A located model or data set.

    Attributes:
        location: A hub repository or an absolute folder.
        revision: The hub commit, or None for a folder.
        content: ``sha256:DIGEST`` or ``hub:ID@COMMIT``.
    """

    location: str
    revision: str | None
    content: str


class Sources:
    """Locates models and data sets, each only once, and remembers the digests of large files.

    Args:
        cache: A JSON file for the digests; created when it is first needed.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._found: dict[tuple[str, ...], Source] = {}

    def model(self, id: str, revision: str, trust_remote_code: bool = False) -> Source:
        """Locate ``model.id``: a builtin name, a local folder, or a hub repository.

        Args:
            id: The value of ``model.id``.
            revision: A branch, tag or commit; used only for a hub repository.
            trust_remote_code: Whether a local folder's own code may run.

        Raises:
            UserError: There is no such folder or repository, a local folder lacks a file, this
                account has no access to the repository, or the hub cannot be reached.
        """

        def files(folder: Path) -> Iterable[Path]:
            return model_files(folder, trust_remote_code, f"model.id={id}")

        return self._once(("model", id, revision, trust_remote_code), "model.id", revision, files)

    def data(self, data: DataSettings) -> Source:
        """Locate a task: ``data.path`` if it is given, else the hub data set ``data.id``.

        Args:
            data: The task; its splits say which files of a folder are read.

        Raises:
            UserError: As for :meth:`model`, or a local folder has not exactly one file, or set of
                files, for a split.
        """
        path, splits = data.path, (data.subset, data.train_split, data.dev_split, data.eval_split)
        if path is None:
            memo = ("data", str(data.id), data.revision)
            return self._once(memo, "data.id", data.revision or "main", lambda _: ())
        folder = Path(path).expanduser()
        if folder.is_file():
            raise UserError(
                f"data.path={path} is a file; give its folder, data.path={folder.parent}, and name "
                "its files without their endings in data.train_split and data.eval_split"
            )
        if path not in BUILTIN and not folder.is_dir():
            raise UserError(f"data.path={path} is not a folder; give a folder with data files")
        return self._once(
            ("data", path, splits), "data.path", "", lambda found: files_read(data, found)
        )

    def adapter(self, adapter: AdapterSettings) -> str | None:
        """Identify the files of ``init_from``, an adapter that training starts from.

        Args:
            adapter: The settings of the adapter to train.

        Returns:
            ``sha256:DIGEST``, or None if ``init_from`` is None.

        Raises:
            UserError: It is not a folder, or lacks a file.
        """
        key, path = f"{adapter.kind}.init_from", adapter.init_from
        if path is None:
            return None
        if not Path(path).expanduser().is_dir():
            raise UserError(f"{key}={path} is not a folder; give the folder of a saved adapter")

        def files(folder: Path) -> Iterable[Path]:
            found = [folder / name for name in adapter.start_files(folder)]
            if not found:
                raise UserError(f"{key}: {adapter.title} cannot start from a saved adapter")
            if missing := [file.name for file in found if not file.is_file()]:
                raise UserError(
                    f"{key}={path} has no {missing[0]}; give the folder of a saved "
                    f"{adapter.title} adapter"
                )
            return found

        return self._once((key, path), key, "", files).content

    def _once(self, memo: tuple[Any, ...], key: str, revision: str, files: _Files) -> Source:
        name = str(memo[1])
        if memo not in self._found:
            folder = BUILTIN.get(name, Path(name).expanduser())
            if folder.is_dir():
                content = self._folder_digest(key, folder.resolve(), files)
                self._found[memo] = Source(str(folder.resolve()), None, content)
            elif name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
                raise UserError(f"{key}={name} is not a folder; give a folder or a hub id")
            else:
                commit = hub_commit(key, name, revision)
                self._found[memo] = Source(name, commit, f"hub:{name}@{commit}")
        return self._found[memo]

    def _folder_digest(self, key: str, folder: Path, files: _Files) -> str:
        total = hashlib.sha256()
        try:
            found = sorted(set(files(folder)))
            for file, digest in zip(found, self._digests(found), strict=True):
                total.update(f"{file.relative_to(folder).as_posix()}\0{digest}\n".encode())
        except OSError as error:
            raise UserError(f"{key}: {error.filename} cannot be read ({error.strerror})") from error
        return f"sha256:{total.hexdigest()}"

    def _digests(self, files: Iterable[Path]) -> list[str]:
        known = self._remembered()
        before = dict(known)
        digests = []
        for file in files:
            stat = file.stat()
            entry = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            if entry not in known:
                with file.open("rb") as stream:
                    known[entry] = hashlib.file_digest(stream, "sha256").hexdigest()
            digests.append(known[entry])
            if stat.st_size < _REMEMBER_BYTES:
                del known[entry]
        if known != before:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(self._cache, known)
        return digests

    def _remembered(self) -> dict[str, str]:
        """The digests that were computed before; none if the file is missing or broken."""
        found = read_sealed(self._cache)
        if found.why:
            warn(f"{self._cache} {found.why}; the digests in it are computed again")
        return {} if found.why or found.data is None else found.data


def hub_commit(key: str, id: str, revision: str) -> str:
    """Resolve a hub revision to its commit, using the hub or, if it is offline, the local cache.

    Args:
        key: The config key that named the repository (``model.id`` or ``data.id``).
        id: ``owner/name``.
        revision: A branch, tag or commit.

    Returns:
        The commit's 40 hex digits.

    Raises:
        UserError: The repository or revision does not exist, is gated, or cannot be reached and
            is not cached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub import errors as hub

    kind = "model" if key == "model.id" else "dataset"
    page = f"https://huggingface.co/{'' if kind == 'model' else 'datasets/'}{id}"
    refs = Path(constants.HF_HUB_CACHE) / f"{kind}s--{id.replace('/', '--')}"
    try:
        if constants.is_offline_mode():
            raise hub.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        api = HfApi()
        api.auth_check(id, repo_type=kind)
        info = api.repo_info(id, revision=revision, repo_type=kind, timeout=10)
        return str(info.sha)
    except hub.GatedRepoError:
        raise UserError(
            f"{key}={id} is gated and this account has no access; accept its terms at {page}, "
            "then run `hf auth login` (or set HF_TOKEN), or give a local folder"
        ) from None
    except hub.RevisionNotFoundError:
        raise UserError(
            f"{key.split('.')[0]}.revision={revision} does not exist in {id}; see {page}"
        ) from None
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        raise UserError(
            f"{key}={id} is neither a local folder nor a repository that this account can see "
            f"({page}); if it is private, run `hf auth login`"
        ) from None
    except Exception as error:  # the network fails in many ways, and the advice is the same
        cached = refs / "refs" / revision
        if (refs / "snapshots" / revision).is_dir():
            return revision
        if cached.is_file():
            return cached.read_text().strip()
        raise UserError(
            f"{key}={id} is not a local folder, is not in the hub cache "
            f"({constants.HF_HUB_CACHE}), and the hub did not answer ({type(error).__name__}); "
            "give a local folder, or run once with a connection"
        ) from error
