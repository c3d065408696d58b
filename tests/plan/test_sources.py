"""Where models and data come from: the hub's answers, each with its way out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from heft_pipeline.errors import UserError
from heft_pipeline.plan.sources import BUILTIN, Sources

COMMIT = "f" * 40


def hub(monkeypatch: pytest.MonkeyPatch, *, auth: Any = None, info: Any = None) -> None:
    """A hub that answers as given: an error is raised, anything else returned."""

    def answer(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    api = SimpleNamespace(
        auth_check=lambda *_, **__: answer(auth), repo_info=lambda *_, **__: answer(info)
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)


def refused(kind: Any) -> Exception:
    response = httpx.Response(403, request=httpx.Request("GET", "https://example.invalid"))
    error: Exception = kind("refused", response=response)
    return error


def test_a_hub_model_is_pinned_to_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub(monkeypatch, info=SimpleNamespace(sha=COMMIT))
    source = Sources(tmp_path / "d.json").model("owner/name", "main")
    assert (source.location, source.revision) == ("owner/name", COMMIT)
    assert source.content == f"hub:owner/name@{COMMIT}"


@pytest.mark.parametrize(
    ("auth", "info", "said"),
    [
        (refused(errors.GatedRepoError), None, ["model.id=owner/name", "gated", "hf auth login"]),
        (refused(errors.RepositoryNotFoundError), None, ["model.id=owner/name", "neither"]),
        (None, refused(errors.RevisionNotFoundError), ["model.revision=v9", "owner/name"]),
        (httpx.ConnectError("no route"), None, ["model.id=owner/name", "did not answer"]),
    ],
)
def test_the_hubs_refusals_name_the_key_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, auth: Any, info: Any, said: list[str]
) -> None:
    hub(monkeypatch, auth=auth, info=info)
    with pytest.raises(UserError) as caught:
        Sources(tmp_path / "d.json").model("owner/name", "v9")
    for words in said:
        assert words in str(caught.value)


def test_without_a_connection_the_cached_commit_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub(monkeypatch, auth=httpx.ConnectError("no route"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--google--boolq" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    source = Sources(tmp_path / "d.json").data("google/boolq", None, "main")
    assert source.revision == COMMIT


def test_builtin_names_are_folders_of_the_package(tmp_path: Path) -> None:
    sources = Sources(tmp_path / "d.json")
    assert sources.model("builtin:tiny", "main").location == str(BUILTIN["builtin:tiny"])
    assert sources.data(None, "builtin:demo", "main").content.startswith("sha256:")


def test_digests_of_large_files_are_remembered_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft_pipeline.plan.sources._REMEMBER_BYTES", 10)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "big.safetensors").write_text("x" * 20)
    (folder / "small.json").write_text("{}")
    cache = tmp_path / "cache" / "digests.json"
    first = Sources(cache).model(str(folder), "main").content
    known = json.loads(cache.read_text())
    assert [Path(entry.split("|")[0]).name for entry in known] == ["big.safetensors"]
    assert Sources(cache).model(str(folder), "main").content == first
    (folder / "big.safetensors").write_text("y" * 21)
    assert Sources(cache).model(str(folder), "main").content != first
