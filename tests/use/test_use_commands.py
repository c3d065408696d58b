"""The commands that use an adapter, as someone types them."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from heft_pipeline.__main__ import main
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def heft_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``heft WORDS``, with a text on standard input."""

    def run(*words: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heft", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capfd.readouterr()

    return run


def questions(small_data: Path) -> list[dict[str, object]]:
    lines = (small_data / "validation.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "answer"} for line in lines]


def as_lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "stdin"])
def test_rows_are_answered_in_their_order(
    kind: str, heft_command: Run, heft: StageSpec, kept: Store, heft_folder: Path,
    small_data: Path, tmp_path: Path,
) -> None:  # fmt: skip
    expected = pd.read_parquet(kept.folder(heft.fingerprint) / "predictions.parquet")
    rows, file, typed = questions(small_data), tmp_path / f"rows.{kind}", ""
    if kind == "stdin":
        typed = as_lines(rows)
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    elif kind == "tsv":
        pd.DataFrame(rows).to_csv(file, index=False, sep="\t")
    else:
        pd.DataFrame(rows).to_json(file, orient="records", lines=True)
    data = "-" if kind == "stdin" else file
    status, out, err = heft_command("predict", heft_folder, "--data", data, typed=typed)
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [one["id"] for one in answers] == [str(n) for n in range(len(rows))]
    assert [one["prediction"] for one in answers] == expected.prediction.tolist()
    assert answers[0]["logprobs"]["true"] == pytest.approx(expected.logprob_true[0], abs=1e-5)


def test_answers_come_before_the_last_question(heft_folder: Path, small_data: Path) -> None:
    rows = questions(small_data)
    process = subprocess.Popen(
        [sys.executable, "-m", "heft_pipeline", "predict", str(heft_folder), "--data", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    for number, row in enumerate(rows[:3]):
        process.stdin.write(json.dumps(row) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == str(number)
    process.stdin.close()
    assert process.wait(60) == 0


def test_nothing_is_computed_for_a_reader_that_has_gone(
    heft_folder: Path, small_data: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "heft_pipeline", "predict", str(heft_folder), "--data", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    line = as_lines(questions(small_data)[:1])
    process.stdin.write(line)
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 60:
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            break
        time.sleep(0.05)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


def test_a_broken_row_ends_it_after_the_rows_before_it(
    heft_command: Run, heft_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    rows, to = questions(small_data)[:4], tmp_path / "to.jsonl"
    typed = as_lines(rows) + "{broken\n"
    status, _, err = heft_command("predict", heft_folder, "--data", "-", "--to", to, typed=typed)
    assert status == 1 and "standard input, line 5" in err and "not JSON" in err
    assert len(to.read_text().splitlines()) == 4
    again = heft_command("predict", heft_folder, "--data", "-", "--to", to, typed=typed)
    assert again[0] == 1 and "is there already" in again[2]


@pytest.mark.parametrize(
    ("words", "typed", "said"),
    [
        (["predict", "{}", "--data", "-"], "", "- has no rows"),
        (["predict", "{}", "--data", "-"], '{"a": 1}\n', "data.prompt names {passage}"),
        (["predict", "{}", "--data", "-"], "[1]\n", "not a JSON object"),
        (["predict", "{}", "--data", "nowhere.jsonl"], "", "nowhere.jsonl is not a file"),
        (["predict", "{}", "--data", __file__], "", "say what it holds with --format"),
        (["predict", "/nowhere", "--data", "-"], "", "/nowhere is not a folder"),
        (["predict", "abcdef", "--data", "-"], "", "holds no stages"),
        (["evaluate", "{}", "epochs=3"], "", "epochs=3 is no setting of the task"),
        (["evaluate", "{}", "data.pth=3"], "", "data.pth=3: Key 'pth' not in"),
        (["evaluate", "{}", "data.eval_split=nope"], "", "has no nope.jsonl"),
        (["evaluate", "{}", "data=nope"], "", "data=nope is not one of"),
        (["evaluate", "{}", "data=a", "data=b"], "", "data= is given twice"),
        (["evaluate", "{}", "data=demo,demo"], "", "demo/test is asked for twice"),
        (["evaluate", "{}", "data.dev_size=-1"], "", "data.dev_size=-1"),
        (["chat", "{}", "--system", "be kind"], "", "this model has none"),
        (["prdict"], "", "did you mean heft predict?"),
        (["nothing"], "", "nothing is no command of heft"),
    ],
)  # fmt: skip
def test_a_slip_is_one_message(
    words: list[str], typed: str, said: str, heft_command: Run, heft_folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [word.format(heft_folder) for word in words]
    status, out, err = heft_command(*given, typed=typed)
    assert (status, out) == (1, "")
    assert said in err and err.startswith("Error: ") and err.count("\n") == 1


def test_an_adapter_is_evaluated_beside_the_untouched_model(
    heft_command: Run, heft: StageSpec, kept: Store, heft_folder: Path, small: list[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    status, out, err = heft_command("evaluate", heft_folder, "--json", "--to", tmp_path / "to")
    assert (status, err) == (0, "")
    (found,) = json.loads(out)
    expected = pd.read_parquet(kept.folder(heft.fingerprint) / "predictions.parquet")
    assert found["accuracy"] == expected.credit.mean()
    assert found["difference"] == pytest.approx(found["accuracy"] - found["untouched"])
    low, high = found["difference_interval"]
    assert low < found["difference"] < high
    written = pd.read_parquet(tmp_path / "to" / "small-validation" / "predictions.parquet")
    pd.testing.assert_frame_equal(written, expected)
    status, out, err = heft_command("evaluate", heft_folder, "data.eval_split=train", "--no-base",
                                    "data.allow_overlap=true")  # fmt: skip
    assert status == 0 and "small/train" in out and "untouched" not in out
    # Another task, and several at once.
    own = [one for one in small if one.startswith("data.")]
    status, out, err = heft_command("evaluate", heft_folder, "data=boolq", *own)
    assert status == 0 and f"{found['accuracy']:.1%}" in out, err
    assert max(map(len, out.splitlines())) <= 80


def test_a_conversation_is_continued(heft_command: Run, heft_folder: Path) -> None:
    typed = "w1 w2 w3\n\n/task question=w1 || passage=w1 w2\n/task question=w1\nw1 w2 w3\n"
    status, out, err = heft_command("chat", heft_folder, "--max-new-tokens", "4", typed=typed)
    assert status == 0
    first, answer, again = [line for line in out.splitlines() if line]
    assert first == again
    assert answer.split()[0] in ("true", "false") and "true -" in answer
    assert "data.prompt names {passage}" in err


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "json"])
def test_long_cells_and_rare_line_ends_stay_what_they_are(
    kind: str, heft_command: Run, heft_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {"passage": "w1\u2028w2 w3", "question": "w1", "more": "x" * 200_000},
        {"passage": "w4 w5", "question": "w4", "more": ""},
    ]
    file = tmp_path / f"rows.{kind}"
    if kind == "json":
        file.write_text(json.dumps(rows))
    else:
        pd.DataFrame(rows).to_csv(file, index=False)
    status, out, err = heft_command("predict", heft_folder, "--data", file)
    assert (status, err) == (0, "") and len(out.splitlines()) == 2


def test_heft_lists_its_commands_and_says_its_version(heft_command: Run) -> None:
    assert heft_command("--version")[:2] == (0, "heft_pipeline 0.1.0\n")
    status, out, _ = heft_command("help")
    assert status == 0 and "heft predict" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("word", ["predict", "evaluate", "chat", "export", "report", "status",
                                  "store", "track", "dashboard"])  # fmt: skip
def test_each_command_has_help(word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", word, "--help"], capture_output=True, text=True,
        env={"COLUMNS": "80", "PATH": "/usr/bin:/bin"}, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: ")
