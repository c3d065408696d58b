"""Names, prompts, answers and logs that were written to harm whoever reads them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from heft_pipeline.files.json_files import write_json
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep, reseal
from tests.security.hostile import MARKUP, ORDERS, SCRIPT
from tests.view.conftest import View

EVIL = f"{SCRIPT}{MARKUP}\"' onload=alert(1) {{{{7*7}}}} javascript:alert(1) {ORDERS}"
SECRET = "hf_" + "a1B2" * 9


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep in which all that comes from outside is hostile."""
    outputs = tmp_path_factory.mktemp("hostile-view")

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    plain = EVIL.replace("{{7*7}}", "")
    extra = [
        f"data.name={quoted(plain)}",
        f"model.name={quoted(plain)}",
        f"data.prompt={quoted('{passage} ' + SCRIPT + ' {question}')}",
    ]
    runs = [("method=lora epochs=1", 0.6), ("method=reft epochs=1", 0.7)]
    name = "<b>-m \"'&?#%2e<script>"
    sweep = make_sweep(outputs, runs, extra=extra, name=name)
    plan = sweep.plan()
    plan["runs"][0]["name"] = re.sub(r"[/\\]", "|", EVIL)
    plan["runs"][1]["method"] = EVIL
    write_json(sweep.folder / "plan.json", plan)
    store, key = sweep.store, plan["runs"][0]["stages"][0]
    folder = store.folder(key)
    (folder / "stage.log").write_text(f"{EVIL}\n{SECRET}\n")
    table = pd.read_parquet(folder / "predictions.parquet")
    table["id"] = [f"{number}{EVIL}" for number in range(len(table))]
    table.loc[0, "prediction"] = EVIL
    table["text"] = EVIL
    table.to_parquet(folder / "predictions.parquet", index=False)
    lines = [{"event": "step", "step": 1, "epoch": 1, "loss": EVIL, SCRIPT: 1}]
    lines += [{"event": "step", "step": SCRIPT, "epoch": 1, "loss": 0.1}]
    lines += [{"event": "step", "step": n, "epoch": 1, "loss": 1 / n} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reseal(store, key, notes=[EVIL], dtype=EVIL, machine={"host": EVIL, "device": EVIL})
    failed = plan["runs"][1]["stages"][0]
    (store.folder(failed) / "result.json").unlink()
    store.fail(failed, {"reason": EVIL, "time": 0.0})
    return sweep


@pytest.fixture(scope="module")
def pages(hostile: Sweep, serve: Callable[[Path], View]) -> dict[str, str]:
    """Every page of it, by its address."""
    view, found = serve(hostile.store.output_dir), {}
    left = ["/"]
    while left:
        path = left.pop()
        got = view.get(path)
        assert got.status == 200, (path, got.shown)
        found[path] = got.text
        if path.startswith(("/look", "?")):
            continue
        links = re.findall(r'(?:href|src|data-live)="(/[^"]*)"', got.text)
        left += [link for link in links if link not in found and link not in left]
    return found


def test_every_page_was_reached(pages: dict[str, str]) -> None:
    kinds = {path.split("/")[1] for path in pages}
    assert kinds == {"", "sweeps", "stages", "look", "live"}
    assert len([path for path in pages if path.startswith("/stages")]) == 3


def test_nothing_from_outside_becomes_markup(pages: dict[str, str]) -> None:
    for path, text in pages.items():
        if path.startswith(("/look", "/live")):
            continue
        assert "<script>document" not in text
        assert not re.search(r"<img|<b>", text)
        assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', text))
        assert not re.search(r'(?:href|src)="\s*javascript:', text)
        assert "{{7*7}}" in text or "{7*7}" not in text
        assert ">49<" not in text


def test_hostile_text_is_shown_as_text(pages: dict[str, str]) -> None:
    stages = [text for path, text in pages.items() if path.startswith("/stages")]
    assert any("owned&#39;&lt;/script&gt;" in text and "<svg" in text for text in stages)
    (sweep,) = [text for path, text in pages.items() if path.startswith("/sweeps")]
    assert "&lt;b&gt;-m" in sweep


def test_no_page_holds_what_moves_or_hides_text(pages: dict[str, str]) -> None:
    for path, text in pages.items():
        shown = (
            json.dumps(json.loads(text), ensure_ascii=False) if path.startswith("/live") else text
        )
        assert not set(shown) & set("\x1b\x07\x9b\x7f\x08\r\u202e\u202c\u2028"), path


def test_no_page_holds_a_secret(pages: dict[str, str]) -> None:
    assert any("[secret]" in text for text in pages.values())
    assert not any(SECRET in text for text in pages.values())


def test_what_is_searched_for_is_shown_as_text(
    hostile: Sweep, serve: Callable[[Path], View]
) -> None:
    key = hostile.plan()["runs"][0]["stages"][0]
    view = serve(hostile.store.output_dir)
    got = view.get(f"/stages/{key}?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&choice=%3Cb%3E&page=x")
    assert got.status == 200
    assert "<script>alert" not in got.text
    assert "&lt;script&gt;alert(1)" in got.text
