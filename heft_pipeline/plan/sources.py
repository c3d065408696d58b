"""Where models and data come from, and what exactly they are.

A local folder is identified by the SHA-256 of its files and a hub repository by its commit, so
that new content under an old name is never mistaken for the old content.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
BUILTIN = {
    "builtin:tiny": PACKAGE / "models" / "tiny",
    "builtin:demo": PACKAGE / "data" / "demo" / "files",
}
#: Files of a model folder that cannot change what the model computes.
_IGNORED = {"README.md", "LICENSE", "generation_config.json", ".gitattributes"}
#: Digests of files of at least this size are remembered between invocations.
_REMEMBER_BYTES = 32 * 2**20


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

    def model(self, id: str, revision: str) -> Source:
        """Locate ``model.id``: a builtin name, a local folder, or a hub repository.

        Args:
            id: The value of ``model.id``.
            revision: A branch, tag or commit; used only for a hub repository.

        Raises:
            UserError: There is no such folder or repository, this account has no access to it, or
                the hub cannot be reached.
        """
        return self._once(("model", id, revision), "model.id", id, revision)

    def data(self, id: str | None, path: str | None, revision: str) -> Source:
        """Locate a task: ``data.path`` if it is given, else the hub data set ``data.id``.

        Args:
            id: The value of ``data.id``.
            path: The value of ``data.path``.
            revision: A branch, tag or commit; used only for a hub data set.

        Raises:
            UserError: As for :meth:`model`.
        """
        if path is not None:
            if path not in BUILTIN and not Path(path).expanduser().is_dir():
                raise UserError(f"data.path={path} is not a folder; give a folder with data files")
            return self._once(("data", path), "data.path", path, "")
        return self._once(("data", str(id), revision), "data.id", str(id), revision)

    def adapter(self, key: str, path: str | None) -> str | None:
        """Identify a folder of adapter weights that training starts from.

        Args:
            key: The config key, for the error message.
            path: The key's value.

        Returns:
            ``sha256:DIGEST``, or None if ``path`` is None.

        Raises:
            UserError: ``path`` is not a folder.
        """
        if path is None:
            return None
        if not Path(path).expanduser().is_dir():
            raise UserError(f"{key}={path} is not a folder; give the folder of a saved adapter")
        return self._once((key, path), key, path, "").content

    def _once(self, memo: tuple[str, ...], key: str, name: str, revision: str) -> Source:
        if memo not in self._found:
            folder = BUILTIN.get(name, Path(name).expanduser())
            if folder.is_dir():
                absolute = str(folder.resolve())
                self._found[memo] = Source(absolute, None, self._folder_digest(key, folder))
            elif name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
                raise UserError(f"{key}={name} is not a folder; give a folder or a hub id")
            else:
                commit = hub_commit(key, name, revision)
                self._found[memo] = Source(name, commit, f"hub:{name}@{commit}")
        return self._found[memo]

    def _folder_digest(self, key: str, folder: Path) -> str:
        names = sorted(
            p.name
            for p in folder.iterdir()
            if p.is_file() and p.name not in _IGNORED and not p.name.startswith(".")
        )
        if not names:
            raise UserError(f"{key}={folder} holds no files")
        total = hashlib.sha256()
        for name, digest in zip(names, self._digests(folder / n for n in names), strict=True):
            total.update(f"{name}\0{digest}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def _digests(self, files: Iterable[Path]) -> list[str]:
        known = json.loads(self._cache.read_text()) if self._cache.is_file() else {}
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
            partial = self._cache.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(known))
            partial.replace(self._cache)
        return digests


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
