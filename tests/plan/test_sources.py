"""Where models and data come from: the hub's answers, each with its way out."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.files.sealed import read_sealed
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.sources import BUILTIN, Sources
from heft_pipeline.store.stage_folders import Store
from launch.check_inputs import refuse_changed_inputs

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
    source = Sources(tmp_path / "d.json").data(DataSettings(id="google/boolq"))
    assert source.revision == COMMIT


def test_builtin_names_are_folders_of_the_package(tmp_path: Path) -> None:
    sources = Sources(tmp_path / "d.json")
    assert sources.model("builtin:tiny", "main").location == str(BUILTIN["builtin:tiny"])
    demo = DataSettings(path="builtin:demo", eval_split="test")
    assert sources.data(demo).content.startswith("sha256:")


def test_digests_of_large_files_are_remembered_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft_pipeline.plan.sources._REMEMBER_BYTES", 10)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_text("x" * 20)
    (folder / "config.json").write_text("{}")
    cache = tmp_path / "cache" / "digests.json"
    first = Sources(cache).model(str(folder), "main").content
    known = read_sealed(cache).data or {}
    assert [Path(entry.split("|")[0]).name for entry in known] == ["model.safetensors"]
    assert Sources(cache).model(str(folder), "main").content == first
    (folder / "model.safetensors").write_text("y" * 21)
    assert Sources(cache).model(str(folder), "main").content != first


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder with a data set and the files of a model."""
    for name in ("train.jsonl", "validation.jsonl", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_dev_split_counts_only_if_it_is_read(local: Path) -> None:
    def content(**settings: Any) -> str:
        return Sources(local / "d").data(DataSettings(path=str(local), **settings)).content

    held_out = content()
    (local / "dev.csv").write_text("a,b")
    assert content() == held_out
    own = content(dev_split="dev")
    assert own != held_out
    (local / "dev.csv").write_text("b,a")
    assert content(dev_split="dev") != own
    assert content() == held_out


def test_a_data_path_that_is_a_file_is_told_its_folder(local: Path) -> None:
    with pytest.raises(UserError, match=rf"is a file; give its folder, data\.path={local}, and"):
        Sources(local / "d").data(DataSettings(path=str(local / "train.jsonl")))


def test_a_subset_of_a_local_folder_is_its_own_content(local: Path) -> None:
    (local / "easy").mkdir()
    for split in ("train", "validation"):
        (local / "easy" / f"{split}.jsonl").write_text("y")

    def content(subset: str | None) -> str:
        return Sources(local / "d").data(DataSettings(path=str(local), subset=subset)).content

    whole, easy = content(None), content("easy")
    (local / "easy" / "train.jsonl").write_text("z")
    assert content(None) == whole
    assert content("easy") not in (whole, easy)
    with pytest.raises(UserError, match=r"data\.subset=hard: .* no folder hard; it has .*easy/"):
        content("hard")


def test_a_models_own_code_counts_if_it_may_run(local: Path) -> None:
    (local / "modeling_own.py").write_text("1")

    def content(trusted: bool) -> str:
        return Sources(local / "d").model(str(local), "main", trusted).content

    assert content(True) == content(False)  # nothing in config.json refers to it
    (local / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_own.M"}}')
    before, untrusted = content(True), content(False)
    (local / "modeling_own.py").write_text("2")
    assert content(True) != before
    assert content(False) == untrusted


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "version https://git-lfs.github.com", r"config\.json is a Git LFS pointer"),
        ("tokenizer.json", "version https://git-lfs", r"tokenizer\.json is a Git LFS pointer"),
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", "[]", r"config\.json is not a JSON object"),
        ("adapter_config.json", "{}", r"has an adapter \(adapter_config\.json\) beside"),
    ],
)
def test_a_model_folder_that_is_not_whole_is_refused(
    local: Path, name: str, content: str, said: str
) -> None:
    (local / name).write_text(content)
    with pytest.raises(UserError, match=rf"model\.id={local}.* ?{said}"):
        Sources(local / "d").model(str(local), "main")


def test_a_file_that_cannot_be_read_is_named(local: Path) -> None:
    (local / "train.jsonl").unlink()
    (local / "train.jsonl").symlink_to(local / "gone")
    with pytest.raises(UserError, match=r"train\.jsonl cannot be read \(No such file"):
        Sources(local / "d").data(DataSettings(path=str(local)))


def test_only_the_files_of_a_saved_adapter_count(local: Path) -> None:
    (local / "config.json").write_text('{"sorted_keys": ["a", "b"]}')
    files = {
        "lora": ["adapter_config.json", "adapter_model.safetensors"],
        "red": ["red.safetensors"],
        "reft": ["config.json", "intkey_a.bin", "intkey_b.bin"],
    }
    assert list(files) == list(kinds())
    for kind, names in files.items():
        settings = kinds()[kind](init_from=str(local))
        with pytest.raises(UserError, match=rf"{kind}\.init_from={local} has no "):
            Sources(local / "d").adapter(settings)
        for name in names:
            (local / name).touch()
        before = Sources(local / "d").adapter(settings)
        (local / "model.safetensors").write_text(kind)
        assert Sources(local / "d").adapter(settings) == before
        with (local / names[-1]).open("a") as file:
            file.write(" ")
        assert Sources(local / "d").adapter(settings) != before
    (local / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"reft\.init_from=.* has no config\.json that names"):
        Sources(local / "d").adapter(kinds()["reft"](init_from=str(local)))


def test_a_changed_start_is_noticed_when_a_job_begins(
    compose_run: Callable[..., Run], small: list[str], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "red.safetensors").write_text("1")
    start = f"red.init_from={tmp_path / 'start'}"
    stage = compose_run(*small, "method.stages=[red]", start).last
    store.folder(stage.fingerprint).mkdir(parents=True)
    refuse_changed_inputs(stage, store)
    (tmp_path / "start" / "red.safetensors").write_text("2")
    with pytest.raises(RuntimeError, match=r"red\.init_from=.* has changed"):
        refuse_changed_inputs(stage, store)


@pytest.mark.parametrize("broken", ["", '{"/a|1|2": "00', "[]", "\0\0"])
def test_broken_remembered_digests_are_computed_again(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft_pipeline.plan.sources._REMEMBER_BYTES", 1)
    (tmp_path / "rows.jsonl").write_text("{}")
    cache = tmp_path / "digests.json"
    cache.write_text(broken)
    (digest,) = Sources(cache)._digests([tmp_path / "rows.jsonl"])
    assert list((read_sealed(cache).data or {}).values()) == [digest]


def test_a_remembered_digest_that_was_changed_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft_pipeline.plan.sources._REMEMBER_BYTES", 1)
    rows, cache = tmp_path / "rows.jsonl", tmp_path / "digests.json"
    rows.write_text("{}")
    (digest,) = Sources(cache)._digests([rows])
    cache.write_text(cache.read_text().replace(digest, digest[:-1] + "x"))
    assert Sources(cache)._digests([rows]) == [digest]
