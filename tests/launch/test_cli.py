"""The command line: sweeps, reuse, and one clear message for each bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import CliResult, make_rows, write_rows

Cli = Callable[..., CliResult]

COLUMNS = (
    "method,epochs,lora_rank,reft_rank,seed,model,data,accuracy,n_eval,trainable_params,"
    "train_seconds,train_tflop,peak_memory_mb,stages,stages_reused,status,ece,brier,"
    "forgetting"
)


def test_a_sweep_ends_in_a_table_and_a_report(cli: Cli, small: list[str], tmp_path: Path) -> None:
    asked = [*small, "-m", "method=lora,reft,heft", "epochs=1,2", "rank=4", "sweep=s"]
    status, out, err = cli(*asked)
    assert status == 0, err
    assert "6 runs" in out
    assert "6 unique stages, not 8" in out
    folder = tmp_path / "outputs" / "sweeps" / "s"
    assert (folder / "results.csv").read_text().splitlines()[0] == COLUMNS
    table = pd.read_csv(folder / "results.csv")
    assert len(table) == 6
    assert set(table.status) == {"complete"}
    assert table.accuracy.between(0, 1).all()
    assert (table.n_eval == 50).all()
    heft, lora = (
        table[(table.method == m) & (table.epochs == 2)].iloc[0] for m in ("heft", "lora")
    )
    assert heft.train_seconds > lora.train_seconds
    assert heft.trainable_params > lora.trainable_params
    assert heft.stages.split("+")[0] == lora.stages
    assert heft.stages_reused == 1
    text = (folder / "report.md").read_text()
    figures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line[:2] == "!["]
    assert figures
    for figure in figures:
        assert (folder / figure).read_bytes()[:4] == b"\x89PNG"
    drawn = pd.read_csv(folder / "figures" / "accuracy_over_epochs.csv")
    assert len(drawn) == 6
    assert "untouched model" in text
    claims = [claim["claim"] for claim in json.loads((folder / "claims.json").read_text())]
    assert claims == [
        *(f"heft@{epochs} > {other}@{epochs}" for epochs in (1, 2) for other in ("lora", "reft")),
        *(f"heft@1 > {other}@2" for other in ("lora", "reft")),
    ]
    for claim in claims:
        assert claim in text
        assert claim in out
    assert "not in this sweep" not in text
    assert "seed=0,1,2,3,4,5" in out
    edits = pd.read_csv(folder / "figures" / "reft_edits.csv")
    assert set(edits.setting) == {"reft@2", "heft@2 (on LoRA)"}
    plan = json.loads((folder / "plan.json").read_text())
    assert [len(run["stages"]) for run in plan["runs"]] == [1, 1, 1, 1, 2, 2]
    for run in plan["runs"]:
        assert (folder / "runs" / run["name"] / ".hydra" / "config.yaml").is_file()
    assert max(map(len, out.splitlines())) <= 80 or "/" in max(out.splitlines(), key=len)


def test_a_complete_sweep_is_reused_without_importing_torch(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "-m", "method=lora,heft", "epochs=1"]
    assert cli(*asked, "sweep=first")[0] == 0
    code = (
        "import sys; from heft_pipeline.__main__ import main\n"
        "main()\n"
        "print('TORCH' if 'torch' in sys.modules else 'NO TORCH')"
    )
    arguments = [
        *(a for a in asked if a != "-m"),
        "sweep=second",
        f"output_dir={tmp_path / 'outputs'}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NO TORCH" in done.stdout
    assert done.stdout.count("reused") >= 2
    dry = [sys.executable, "-c", code, "-m", *arguments, "hydra.launcher.dry_run=true"]
    for more in ([], ["epochs=2", "hydra.launcher.dry_run_gpu=none"]):
        done = subprocess.run([*dry, *more], capture_output=True, text=True, check=False)
        assert "NO TORCH" in done.stdout, done.stderr
        assert "cost on" not in done.stdout
    table = pd.read_csv(tmp_path / "outputs" / "sweeps" / "second" / "results.csv")
    assert table.stages_reused.tolist() == [1, 2]


def test_one_run_without_multirun_returns_the_same_result(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    status, _, err = cli(*small, "method=heft", "epochs=1", "sweep=one")
    assert status == 0, err
    table = pd.read_csv(tmp_path / "outputs" / "sweeps" / "one" / "results.csv")
    assert len(table) == 1
    status, out, _ = cli(*small, "-m", "method=heft", "epochs=1", "sweep=many")
    again = pd.read_csv(tmp_path / "outputs" / "sweeps" / "many" / "results.csv")
    assert again.accuracy.tolist() == table.accuracy.tolist()
    assert "3 complete" in out


def test_hydras_basic_launcher_gives_the_same_results(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "-m", "method=lora,heft", "epochs=1"]
    assert cli(*asked, "sweep=ours", output_dir=tmp_path / "a")[0] == 0
    status, _, err = cli(*asked, "sweep=s", "hydra/launcher=basic", output_dir=tmp_path / "b")
    assert status == 0, err
    ours = pd.read_csv(tmp_path / "a" / "sweeps" / "ours" / "results.csv")
    theirs = pd.read_csv(tmp_path / "b" / "sweeps" / "s" / "results.csv")
    assert theirs.accuracy.tolist() == ours.accuracy.tolist()
    assert theirs.stages.tolist() == ours.stages.tolist()


def test_points_are_particular_rows_of_a_sweep(cli: Cli, tmp_path: Path) -> None:
    points = [
        "'method=lora,heft epochs=3,6'",
        "'method.stages=[reft,lora] lora.epochs=2'",
        "'method=reft epochs=20'",
    ]
    asked = ["-m", "seed=4,5", "hydra.launcher.dry_run=true", "hydra.launcher.dry_run_gpu=none"]
    status, out, err = cli(*asked, f"hydra.sweeper.points=[{','.join(points)}]")
    assert status == 0, err
    lines = re.sub(r": [0-9a-f]{8}.*", "", out).splitlines()
    named = [line.split()[-1] for line in lines if line.strip()]
    assert [name for name in named if re.search(r"-r8-s\d$", name)] == [
        f"{run}-r8-s{seed}"
        for run in ("lora-3", "lora-6", "heft-3", "heft-6", "reft+lora-3", "reft-20")
        for seed in (4, 5)
    ]


@pytest.mark.parametrize(
    ("point", "more", "said"),
    [
        ("method=reft epochs=20", ["epochs=3"], "epochs is set by the point 'method=reft epochs"),
        ("epochs=20", ["epochs=3"], "by the command line as well; leave it out there"),
        ("rank=2", ["+experiment=rank_sweep"], "with ~hydra.sweeper.params.rank, or"),
        ("method=reft epoch", [], "'epoch' in 'method=reft epoch' sets nothing; write KEY=VALUE"),
        ("method=reft epoch=3", [], "epoch is not a setting; did you mean epochs?"),
        ("epochs=3 epochs=6", [], "sets epochs twice; give both values as epochs=A,B"),
        ("epochs=[3", [], "'epochs=[3' in 'epochs=[3' cannot be read"),
        ("hydra.launcher.workers=2", [], "holds for a whole sweep"),
        ("", [], "hydra.sweeper.points has an empty point"),
    ],
)
def test_a_bad_point_is_one_message(cli: Cli, point: str, more: list[str], said: str) -> None:
    asked = ["-m", "hydra.launcher.dry_run=true", f"hydra.sweeper.points=['{point}']"]
    status, _, err = cli(*asked, *more)
    assert status == 1
    assert said in err
    assert err.count("Error:") == 1


def test_a_failed_stage_fails_only_the_runs_that_stand_on_it(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "-m", "method=lora,reft,heft", "epochs=1", "lora.learning_rate=1e30"]
    status, out, err = cli(*asked, "sweep=s")
    assert status == 1
    table = pd.read_csv(tmp_path / "outputs" / "sweeps" / "s" / "results.csv")
    assert table.status.tolist() == ["failed", "complete", "failed"]
    assert "lora.learning_rate=1e+30" in out
    assert "stage.log" in out
    assert "Traceback" not in err


def test_an_interrupted_sweep_says_how_to_go_on_and_does(small: list[str], tmp_path: Path) -> None:
    asked = [*small, "method=lora", "epochs=200", f"output_dir={tmp_path}", "sweep=s"]
    command = [sys.executable, "-m", "heft_pipeline", *asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("stages/*/checkpoint/last.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "run the same command to resume there" in out
    assert "Traceback" not in err
    stopped = list(tmp_path.glob("stages/*/checkpoint/last.safetensors"))
    assert stopped


def bad(key: str, *overrides: str) -> object:
    return pytest.param(key, overrides, id=overrides[-1][:60])


BAD_CONFIG = [
    bad("model.quantization=nf4 needs a CUDA GPU", "model.quantization=nf4", "device=cpu"),
    bad("model.quantization", "model.quantization=int3"),
    bad("training.micro_batch_tokens", "training.micro_batch_tokens=many"),
    bad("reft.reuse", "reft.reuse=always"),
    bad("reft.reuse_budget_gib", "reft.reuse_budget_gib=0"),
    bad("report.claims", "report.claims=['heft beats lora']"),
    bad("needs @EPOCHS", "report.claims=['heft > lora@3']"),
    bad("= needs +- and a margin", "report.claims=['heft@3 = lora@3']"),
    bad("report.scope", "report.scope=everything"),
    bad("data.cluster_column=pasage is not a column", "data.cluster_column=pasage"),
    bad("lora.rnak", "lora.rnak=3"),
    bad("epochs", "epochs=three"),
    bad("lora.rank", "lora.rank=0"),
    bad("rank", "rank=0"),
    bad("reft.rank", "reft.rank=-1"),
    bad("method", "method=nosuch"),
    bad("method.stages", "method.stages=[lora,qlora]"),
    bad("lora.dropout", "lora.dropout=1.5"),
    bad("lora.learning_rate", "lora.learning_rate=0"),
    bad("reft.positions", "reft.positions=x7"),
    bad("reft.positions", "reft.positions=f0+l0"),
    bad("reft.intervention", "reft.intervention=foo"),
    bad("reft.layers", "reft.layers=[]"),
    bad("reft.layers", "reft.layers=some"),
    bad("lora.target_modules", "lora.target_modules=[]"),
    bad("model.dtype", "model.dtype=float16"),
    bad("seed", "seed=-1"),
    bad("sweep", "sweep=a/b"),
    bad("device", "device=tpu"),
    bad("device", "device=cuda:7"),
    bad("data.path", "data.path=/no/such/folder"),
    bad("model.id", "model.id=/no/such/folder"),
    bad("model.id", "model.id=nobody/nothing"),
    bad("data.id", "data.path=null", "data.id=nobody/nothing"),
    bad("data.choices", "data.choices.true=' '"),
    bad("data.choices", "~data.choices.true"),
    bad("data.dev_size", "data.dev_size=0"),
    bad("training.selection", "training.selection=first"),
    bad("tracking", "tracking=comet"),
    bad("tracking.mode", "tracking=wandb", "tracking.mode=sometimes"),
    bad("tracking.project", "tracking=wandb", "tracking.project=team/heft"),
    bad("tracking.finish_seconds", "tracking=wandb", "tracking.finish_seconds=0"),
    bad("tracking.tags", "tracking=wandb", "tracking.tags=['']"),
    bad("training.micro_batch_tokens", "training.micro_batch_tokens=null"),
    bad("training.micro_batch_tokens", "training.micro_batch_tokens=0.5"),
    bad("lora.target_modules", "method=lora", "lora.target_modules=null"),
    bad("reft.layers", "method=reft", "reft.layers=null"),
    # These need the model's shape or the data.
    bad("reft.layers", "method=reft", "reft.layers=[7]"),
    bad("lora.target_modules", "method=lora", "lora.target_modules=[q_proj,c_attn]"),
    bad("reft.positions", "method=reft", "reft.positions=f30+l30"),
    bad("reft.rank", "method=reft", "reft.rank=33"),
    bad("data.choices.true", "data.choices.true=' unheard'"),
    bad("data.choices", "data.choices.true=' no w1'"),
    bad("data.answer_column", "data.answer_column=label"),
    bad("data.prompt", "data.prompt='{text} {question}'", "data.truncate_column=null"),
    bad("data.prompt", "data.prompt='{passage} {question'", "data.truncate_column=null"),
    bad("data.train_split", "data.train_split=training"),
    bad("data.eval_split", "data.eval_split=test"),
    bad("data.max_train_rows", "data.max_train_rows=0"),
    bad("data.dev_size", "data.dev_size=120"),
    bad("data.max_prompt_tokens", "data.max_prompt_tokens=3"),
    bad("data.max_prompt_tokens", "data.max_prompt_tokens=10", "data.truncate_column=null"),
    bad("reft.engine", "method=reft", "reft.engine=pyreft", "model.dtype=bfloat16"),
    bad("model.dtype", "method=reft", "reft.engine=pyreft", "model.dtype=auto"),
    bad("lora.init_from", "lora.init_from=/no/such/folder"),
]


@pytest.mark.parametrize(("key", "overrides"), BAD_CONFIG)
def test_bad_input_is_one_message_that_names_the_key(
    cli: Cli, small: list[str], tmp_path: Path, key: str, overrides: tuple[str, ...]
) -> None:
    for mode in ([], ["-m"]):
        status, _, err = cli(*small, *mode, *overrides)
        assert status == 1, (mode, err)
        assert key in err, (mode, err)
        assert "Traceback" not in err
        assert err.startswith("Error: ") or "\nError: " in err
        assert not list((tmp_path / "outputs").glob("stages/*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("key", "split", "rows"),
    [
        ("no rows", "validation", []),
        (
            "validation",
            "validation",
            [{"passage": "w1 w2 w3", "question": "w1", "answer": True}] * 5,
        ),
        ("train", "train", [{"passage": "w1 w2 w3", "question": "w1", "answer": True}] * 50),
        ("answer=3", "train", [{"passage": "w1 w2 w3", "question": "w1", "answer": 3}] * 50),
        ("answer", "train", [{"passage": "w1 w2 w3", "question": "w1"}] * 50),
        ("passage", "train", [{"question": "w1", "answer": i % 2 == 0} for i in range(50)]),
    ],
)
def test_bad_data_is_one_message(
    cli: Cli, small: list[str], tmp_path: Path, key: str, split: str, rows: list[dict[str, object]]
) -> None:
    folder = tmp_path / "data"
    write_rows(folder / "train.jsonl", make_rows(50, seed=1))
    write_rows(folder / "validation.jsonl", make_rows(20, seed=2))
    write_rows(folder / f"{split}.jsonl", rows)
    status, _, err = cli(*small, f"data.path={folder}")
    assert status == 1
    assert key in err
    assert "Traceback" not in err


def test_broken_json_names_its_line(cli: Cli, small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_rows(folder / "validation.jsonl", make_rows(20, seed=2))
    (folder / "train.jsonl").write_text('{"passage": "w1"\n')
    status, _, err = cli(*small, f"data.path={folder}")
    assert status == 1
    assert "train.jsonl, line 1" in err


def test_an_unwritable_output_folder_is_said(cli: Cli, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for mode in ([], ["-m"]):
        status, _, err = cli(*small, *mode, output_dir=tmp_path / "file" / "out")
        assert status == 1
        assert "output_dir=" in err
        assert "Traceback" not in err


def test_full_errors_can_be_asked_for(small: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "heft_pipeline", "rank=0", f"output_dir={tmp_path}"]
    environment = os.environ | {"HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_lists_groups_and_choices_without_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys; from heft_pipeline.__main__ import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
    )
    assert "model: llama2_7b, llama2_7b_chat, llama3_8b, smollm2_135m, tiny" in done.stdout
    methods = next(line for line in done.stdout.splitlines() if line.startswith("method: "))
    assert {"heft", "joint", "lora", "reft"} <= set(methods.removeprefix("method: ").split(", "))
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("experiment", ["heft_paper", "heft_paper_controls", "rank_sweep"])
def test_experiments_compose(experiment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", f"+experiment={experiment}", "--cfg", "all"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    paper = experiment.startswith("heft_paper")
    assert ("- method=heft epochs=3,20" in done.stdout) == (experiment == "heft_paper")
    assert ("id: meta-llama/Llama-2-7b-chat-hf" in done.stdout) == paper
    assert ("rank: 4,8,16,32,64" in done.stdout) == (experiment == "rank_sweep")


def test_the_hub_cache_is_used_offline(
    cli: Cli,
    small: list[str],
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cached hub model runs without a connection, pinned to its commit."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(small_model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    status, _, err = cli(*small, "model.id=someone/small", "method=lora", "epochs=1", "sweep=s")
    assert status == 0, err
    stage = json.loads(next(tmp_path.glob("outputs/stages/*/stage.json")).read_text())
    assert stage["model"]["content"] == f"hub:someone/small@{commit}"
    assert stage["model"]["name"] == "small"


def test_an_optuna_sweep_gets_the_accuracies(cli: Cli, small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no Optuna sweeper here")
    asked = [*small, "-m", "method=lora", "epochs=1", "sweep=s", "hydra/sweeper=optuna"]
    trials = ["hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "lora.rank=choice(2,4)"]
    status, out, err = cli(*asked, *trials, "hydra.sweeper.direction=maximize")
    assert status == 0, out + err
    best = yaml.safe_load((tmp_path / "outputs/sweeps/s/optimization_results.yaml").read_text())
    table = pd.read_csv(tmp_path / "outputs/sweeps/s/results.csv")
    assert 1 <= len(table) <= 2, "a trial that is repeated is the same run"
    assert best["best_value"] == pytest.approx(table.accuracy.max())


def test_hydras_submitit_launcher_gives_the_same_results(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="not installed here")
    asked = [*small, "-m", "method=lora,heft", "epochs=1", "sweep=s"]
    assert cli(*asked, output_dir=tmp_path / "ours")[0] == 0
    command = [sys.executable, "-m", "heft_pipeline", *asked, "hydra/launcher=submitit_local"]
    command = [command[0], *command[1:3], "-m", *(a for a in command[3:] if a != "-m")]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path / 'theirs'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (pd.read_csv(tmp_path / x / "sweeps/s/results.csv") for x in ("ours", "theirs"))
    assert sorted(theirs.accuracy) == pytest.approx(sorted(ours.accuracy))
    assert set(theirs.stages) == set(ours.stages)
