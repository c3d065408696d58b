"""How a setting is declared: the rules of a declaration, and what is made from all of them."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from heft_pipeline.declare_settings import (
    FrozenDict,
    Settings,
    check,
    comparable,
    found,
    identity,
    is_section,
    setting,
)
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.settings.markdown import markdown
from heft_pipeline.settings.schema import HeftConfig, schema

ComposeRun = Callable[..., Run]


def all_settings(kind: Any = HeftConfig, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting's key and field."""
    for one in dataclasses.fields(kind):
        own = f"{key}.{one.name}" if key else one.name
        if is_section(one):
            yield from all_settings(one.type, own)
        elif "bounds" in one.metadata:
            yield own, one


NUMBERS = [pytest.param(key, one, id=key) for key, one in all_settings()
           if one.metadata["bounds"].numeric]  # fmt: skip


@pytest.mark.parametrize(("key", "one"), NUMBERS)
def test_the_message_of_a_bound_has_an_example_that_is_itself_valid(key: str, one: Any) -> None:
    bounds, example = one.metadata["bounds"], one.metadata["example"]
    with pytest.raises(UserError, match=rf"^{key}=-1 must be .*, e\.g\. {key}="):
        bounds.check(key, -1, example)
    bounds.check(key, example, example)
    for never in (float("nan"), float("inf"), True, "many"):
        with pytest.raises(UserError):
            bounds.check(key, never, example)


def test_a_learning_rate_is_not_advised_to_be_eight() -> None:
    one = dict(all_settings())["lora.learning_rate"].metadata
    with pytest.raises(UserError, match=r"greater than 0, e\.g\. lora\.learning_rate=0\.0003"):
        one["bounds"].check("lora.learning_rate", 0.0, one["example"])


def test_an_example_outside_its_own_bounds_is_refused_where_it_is_declared() -> None:
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        setting(0.5, "a share", least=0, most=1, example=8)
    with pytest.raises(ValueError, match="greater than 0"):
        setting(0, "a rank", above=0)
    with pytest.raises(ValueError, match="needs an example"):
        setting("${rank}", "a rank", above=0)


def test_a_field_without_a_declaration_is_refused_where_the_class_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Loose\.rank is not declared"):

        @dataclass(frozen=True)
        class Loose(Settings):
            rank: int = 8


def test_identity_is_true_unless_said_otherwise_and_refuses_what_has_no_one_form() -> None:
    @dataclass(frozen=True)
    class Part(Settings):
        rank: int = setting(8, "counts")
        place: str = setting("here", "does not count", identity=False)
        content: str | None = found("counts, and nobody can set it")

    assert identity(Part(content="sha256:1")) == {"rank": 8, "content": "sha256:1"}
    assert "content" not in OmegaConf.structured(Part)
    # The order of answers decides ties, so it must survive JSON's sorted keys.
    assert identity({"b": " 1", "a": " 2"}) == [["b", " 1"], ["a", " 2"]]
    for loose in ({1, 2}, float("nan"), object(), Path("x")):
        with pytest.raises(TypeError, match="cannot be part of a fingerprint"):
            identity(loose)


def test_a_number_is_whole_or_not_as_its_setting_is_and_must_be_resolved() -> None:
    @dataclass(frozen=True)
    class Part(Settings):
        alpha: float | None = setting(None, "a scale", above=0, example=16)
        rank: int = setting("${rank}", "a rank", above=0, example=8)

    assert repr(Part(alpha=16, rank=8).alpha) == "16.0"
    with pytest.raises(TypeError, match=r"rank=.* is not resolved"):
        identity(Part())


def test_the_order_of_a_mapping_counts() -> None:
    """The first of two equal answers is the prediction."""
    one, other = FrozenDict({"a": " a", "b": " b"}), FrozenDict({"b": " b", "a": " a"})
    assert one != other
    assert one == FrozenDict({"a": " a", "b": " b"})


def test_sections_cannot_be_changed_and_can_be_hashed_pickled_and_copied(
    compose_run: ComposeRun, small: list[str]
) -> None:
    data = compose_run(*small).last.data
    assert isinstance(data.choices, FrozenDict)
    for change in (
        lambda: data.choices.update(x=" x"),
        lambda: data.choices.__setitem__("x", " x"),
        lambda: data.choices.__ior__({"x": " x"}),
        lambda: setattr(data, "name", "x"),
    ):
        with pytest.raises((TypeError, dataclasses.FrozenInstanceError)):
            change()
    assert hash(pickle.loads(pickle.dumps(data))) == hash(copy.deepcopy(data)) == hash(data)


def test_hydras_schema_is_the_declaration() -> None:
    made = schema()
    raw: Any = OmegaConf.to_container(made)
    for key, one in all_settings():
        found: Any = raw
        for name in key.split("."):
            found = found[name]
        default = one.default if one.default is not dataclasses.MISSING else one.default_factory()
        assert found == default, key
    made.lora.dropout = 0.5  # a frozen dataclass alone would refuse
    with pytest.raises(Exception, match="rnk"):
        OmegaConf.merge(made, {"lora": {"rnk": 4}})


def test_each_setting_that_a_stage_holds_is_checked(
    compose_run: ComposeRun, small: list[str]
) -> None:
    run = compose_run(*small, "method=joint")
    for part in (run.last.model, run.last.data, *run.last.adapters):
        check(part, "x")
    broken = dataclasses.replace(run.last.adapters[0], learning_rate=0.0)
    with pytest.raises(UserError, match=r"x\.learning_rate=0\.0 must be greater than 0"):
        check(broken, "x")


def test_the_page_of_settings_is_fresh() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == markdown(), (
        "run: python -m heft_pipeline.settings --markdown > docs/configuration.md"
    )
    for key, _ in all_settings():
        assert f"| `{key}` |" in markdown()


def test_the_page_is_printed_without_torch() -> None:
    code = (
        "import sys; from heft_pipeline.settings.__main__ import main; main(['--markdown']); "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == markdown()


def test_a_newer_setting_counts_only_where_it_was_changed() -> None:
    """Stages that were stored before it was declared keep their fingerprints."""

    @dataclass(frozen=True)
    class Grown(Settings):
        old: int = setting(1, "from the start")
        new: str = setting("as before", "added later", newer=True)

    assert identity(Grown()) == {"old": 1}
    assert identity(Grown(new="other")) == {"old": 1, "new": "other"}
    assert comparable(Grown()) == {"old": 1, "new": "as before"}


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ('lora.target_modules="q_proj,v_proj"', "lora.target_modules=[q_proj,v_proj]"),
        ('lora.target_modules="q_proj, v_proj,"', "lora.target_modules=[q_proj,v_proj]"),
        ('lora.target_modules="[q_proj, v_proj]"', "lora.target_modules=[q_proj,v_proj]"),
        ('lora.target_modules=["q_proj,self_attn.v_proj"]', "[q_proj,self_attn.v_proj]"),
        ('reft.layers="0,1"', "reft.layers=[0,1]"),
        ('red.layers="0, 1"', "red.layers=[0,1]"),
    ],
)
def test_a_list_that_was_written_as_one_text_is_shown_in_brackets(
    given: str, instead: str, compose_run: ComposeRun
) -> None:
    with pytest.raises(UserError) as caught:
        compose_run(given)
    said = str(caught.value)
    assert said.startswith(given.split("=")[0] + "=")
    assert "write it in brackets and without quotes: " in said
    assert said.endswith(instead)


@pytest.mark.parametrize(
    "asked",
    [
        "all-linear",
        "q_proj",
        r"'.*\.(q|v)_proj'",
        r"'.*layers\.\d{1,2}\..*q_proj'",
        "[q_proj,v_proj]",
    ],
)
def test_names_and_regular_expressions_are_taken_as_they_are(
    asked: str, compose_run: ComposeRun
) -> None:
    (adapter,) = compose_run("method=lora", f"lora.target_modules={asked}").last.adapters
    modules = adapter.target_modules  # type: ignore[attr-defined]
    assert modules == (("q_proj", "v_proj") if asked[0] == "[" else asked.strip("'"))


@pytest.mark.parametrize(
    "key",
    ["output_dir", "model.id", "data.path", "report.forgetting", "lora.init_from", "red.init_from"],
)
def test_a_name_that_no_file_system_takes_is_refused_with_its_key(
    key: str, compose_run: ComposeRun
) -> None:
    with pytest.raises(UserError, match=rf"^{key}=/tmp/n+\.\.\. has a name of 300 bytes in it"):
        compose_run(f"{key}=/tmp/{'n' * 300}")
    with pytest.raises(UserError, match=rf"^{key}=.* has a name of 256 bytes in it"):
        compose_run(f"{key}='folder/{'é' * 128}'")
