"""Keys, tokens and passwords of the environment are in no file that the project writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from heft_pipeline.command_line.secrets_kept import MASK, masked, refuse_secret
from heft_pipeline.errors import UserError
from launch.attempt import attempt
from launch.slurm.sbatch import prepared
from tests.conftest import composed_run

ROOT = Path(__file__).parents[2]
#: Made up, in the services' forms; each is in the environment of every command below.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAZZZZMARKED000001",
    "AWS_SECRET_ACCESS_KEY": "markedSecretOfAws0123456789/abcdefghijkl",
    "OPENAI_API_KEY": "sk-marked00000000000000000001",
    "HF_TOKEN": "hf_markedmarkedmarkedmarked0001",
    "WANDB_API_KEY": "0123456789marked0123456789marked01234567",
    "DATABASE_PASSWORD": "marked-password",
}
PROXY = "http://someone:proxymarked@127.0.0.1:9"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with secrets, and W&B's own folders within reach."""
    folder = tmp_path_factory.mktemp("wandb-home")
    own = {f"WANDB_{name}_DIR": str(folder / name) for name in ("CONFIG", "CACHE", "DATA")}
    return {
        **os.environ, **own, **SECRETS, "HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY,
        "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip


def ran(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "heft_pipeline", *arguments],
        env=environment, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip


def leaks(folder: Path) -> list[str]:
    """The files, and their names, in which a secret is."""
    wanted = [*SECRETS.values(), "proxymarked"]
    return [
        f"{path}: {secret}"
        for path in folder.rglob("*")
        for secret in wanted
        if secret in path.name or (path.is_file() and secret.encode() in path.read_bytes())
    ]


def test_a_tracked_sweep_with_a_failing_stage_writes_none(
    small: list[str], secrets: dict[str, str], tmp_path: Path
) -> None:
    """Every byte below output_dir: plan, .hydra, stages, logs, report and W&B's binary files."""
    out = tmp_path / "out"
    asked = [*small, "epochs=1", "report.base_model=false", "report.forgetting=off", "sweep=s"]
    asked += ["tracking=wandb", f"output_dir={out}", "hydra.job.env_copy=[LANG]"]
    done = ran(secrets, "-m", *asked, "method=lora", "lora.learning_rate=3e-3,1e30")
    assert done.returncode == 1, done.stderr
    assert "✗" in done.stdout
    assert list(out.rglob("*.wandb"))
    assert list(out.rglob("stage.log"))
    assert list(out.rglob("hydra.yaml"))
    assert leaks(out) == []
    assert leaks(Path(secrets["WANDB_DATA_DIR"]).parent) == []
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())


@pytest.mark.parametrize(
    "given",
    [
        "data.name=${oc.env:HF_TOKEN}",
        "data.name='${oc.env:AWS_SECRET_ACCESS_KEY,none}'",
        f"data.name={SECRETS['HF_TOKEN']}",
        f"data.prompt='{{passage}} {SECRETS['WANDB_API_KEY']}'",
        f"tracking.tags=[{SECRETS['DATABASE_PASSWORD']}]",
        "+tracking.api_key=typedmarked",
        "tracking.api_key=typedmarked",
        "+hydra.job.env_set.WANDB_API_KEY=typedmarked",
        "hydra.job.env_set.HF_TOKEN=typedmarked",
        "hydra.job.env_copy=[LANG,HF_TOKEN]",
        "model.id=https://someone:typedmarked@host/model",
        "data.path=https://someone:typedmarked@host/data",
        "sweep=hf_typedmarkedtypedmarked00",
        "hydra/launcher=slurm 'hydra.launcher.setup=[export HF_TOKEN=typedmarked]'",
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_a_command_with_one_is_refused_before_anything_is_written(
    cli: object, secrets: dict[str, str], tmp_path: Path, given: str, sweep: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    words = [word.strip("'") for word in given.split(" ", 1)] if "setup" in given else [given]
    status, out, err = cli(*sweep, *words, output_dir=tmp_path / "out")  # type: ignore[operator]
    assert status == 1
    assert err.count("\n") == 1
    assert "written to files" in err
    for secret in (*SECRETS.values(), "typedmarked"):
        assert secret not in out + err
    assert not (tmp_path / "out").exists()


IN_FILES = {
    "env_copy": ("hydra:\n  job:\n    env_copy: [HF_TOKEN]\n", "hydra.job.env_set has HF_TOKEN"),
    "setting": ("data:\n  name: ${oc.env:HF_TOKEN}\n", "data.name holds the value of $HF_TOKEN"),
}


@pytest.mark.parametrize("how", IN_FILES)
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_a_config_file_with_one_is_refused(
    cli: object, tmp_path: Path, sweep: list[str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    (tmp_path / "conf/experiment").mkdir(parents=True)
    written, said = IN_FILES[how]
    (tmp_path / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{written}")
    asked = [f"--config-dir={tmp_path / 'conf'}", "+experiment=mine"]
    status, _, err = cli(*sweep, *asked, output_dir=tmp_path / "out")  # type: ignore[operator]
    assert status == 1
    assert said in err
    assert leaks(tmp_path) == []
    assert not (tmp_path / "out").exists()


def test_a_failure_that_names_one_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heft_pipeline.stage import run_stage
    from heft_pipeline.store.stage_folders import Store

    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    said = f"no connection: {PROXY} refused Bearer {SECRETS['HF_TOKEN']}"

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError(said)

    monkeypatch.setattr(run_stage, "run_stage", fail)
    stage, store = composed_run("method=lora").last, Store(tmp_path)
    tried = attempt(stage, store)
    assert tried.status == "failed"
    assert tried.text == f"ConnectionError: no connection: http://{MASK}@127.0.0.1:9 refused " + (
        f"Bearer {MASK}"
    )
    failure = json.dumps(store.failure(stage.fingerprint))
    assert "no connection" in failure
    assert leaks(tmp_path) == []


def test_the_file_about_an_unforeseen_error_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from heft_pipeline.command_line.run import run_command

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    def fail(_: object) -> int:
        raise LookupError(f"{PROXY} {' '.join(SECRETS.values())}")

    assert run_command(fail, [f"output_dir={tmp_path}", SECRETS["HF_TOKEN"]]) == 1
    (log,) = tmp_path.glob("error-*.log")
    assert "LookupError" in log.read_text()
    assert leaks(tmp_path) == []
    err = capsys.readouterr().err
    assert not any(secret in err for secret in SECRETS.values())


def test_a_jobs_script_and_files_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from heft_pipeline.store.sweep_folders import Sweep
    from launch.slurm.job_notes import JobNote
    from launch.slurm.settings import SlurmSettings

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = SlurmSettings(setup=["module load cuda"], sbatch={"export": "ALL"})
    note = JobNote("s", 0.0, submission="token")
    made = prepared([print], note, Sweep(tmp_path), settings, {"time": 10})
    assert "module load cuda" in made.script
    (tmp_path / "script.sh").write_text(made.script)
    assert list(tmp_path.rglob("*.pkl"))
    assert leaks(tmp_path) == []


def test_what_is_masked_and_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "a-long-value")
    monkeypatch.setenv("KEY_FILE", "/home/me/key")
    text = "see https://host/a:b@c and /home/me/key, token=1, tokens 5; ask-me-anything-please-now"
    assert masked(text) == text
    assert masked("x a-long-value y") == f"x {MASK} y"
    assert masked("ftp://me:pass@host/x") == f"ftp://{MASK}@host/x"
    refuse_secret("data.choices", {"key": " key", "token": " token"})
    refuse_secret("data.prompt", "KEY: {passage} token={question}")
    with pytest.raises(UserError, match=r"hydra.launcher.setup sets AWS_SECRET_ACCESS_KEY"):
        refuse_secret("hydra.launcher.setup", ["export AWS_SECRET_ACCESS_KEY=x"])
