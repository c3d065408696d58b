"""How a command of the pages becomes one that takes seconds here, and which cannot be run."""

import re
from dataclasses import dataclass
from pathlib import Path

_CLUSTER = "tests/launch/test_slurm.py runs it on a SLURM of its own"
_LONG = "minutes to hours; tests/benchmarks runs it small"
_ACCOUNT = "needs an account and the internet; tests/tracking has a server of its own"
_HARNESS = "needs the extra lm-eval; tests/use/test_harness.py runs it"
_FETCHES = "fetches packages; .ci/run and the workflow in .github do it"

#: Commands as they stand on the pages that are not run, and why.
NOT_RUN = {
    "python3 -m venv .venv": _FETCHES,
    ". .venv/bin/activate": _FETCHES,
    "pip install -e .": _FETCHES,
    "python -m launch usage SWEEP": _CLUSTER,
    "python -m heft_pipeline.tracking outputs/sweeps/NAME --mode online": _ACCOUNT,
    "python -m heft_pipeline.dashboard --group NAME": _ACCOUNT,
    "python -m benchmarks.architectures --write docs/architectures.md": _LONG,
    "python -m benchmarks.architectures llama mixtral": _LONG,
    "python -m benchmarks.levels --trials 2000": _LONG,
    "python -m benchmarks.levels --only tasks": _LONG,
    "python -m benchmarks.levels --only real --real outputs": _LONG,
    "python -m benchmarks.chaos": _LONG,
    "python -m benchmarks.probe": _LONG,
    "python -m benchmarks.same_results OLD NEW": "tests/storekeeping compares stores with it",
    "python -m pytest -m slow": "the tests themselves",
    "heft view outputs": "serves until it is stopped; tests/view does it",
    "pip install 'heft-pipeline[lm-eval]'": _FETCHES,
    "heft lm-eval run --model heft --model_args adapter=ADAPTER --tasks boolq,piqa": _HARNESS,
    "heft lm-eval agree ADAPTER": _HARNESS,
    "heft push ADAPTER OWNER/NAME --license apache-2.0": (
        "sends it to the hub; tests/use/test_push.py has a hub of its own"
    ),
    "OMP_NUM_THREADS=1 python -m heft_pipeline.reference": "a minute; tests do it elsewhere",
}
#: Few rows and one epoch instead of all: the commands' way is tried, not their answers.
FEW = ("data.max_train_rows=32", "data.max_eval_rows=24", "data.dev_size=0.25")
_SHORT = [
    (r"\bepochs=3,6,20\b", "epochs=1,2"),
    (r"\bepochs=3,6\b", "epochs=1,2"),
    (r"\bepochs=3,20\b", "epochs=1,2"),
    (r"\bepochs=3\b", "epochs=1"),
    (r"\bseed=0,1,2,3,4\b", "seed=0,1"),
    (r"\bseed=0,1,2\b", "seed=0"),
    (r"method=lora,heft hydra/launcher", "method=heft hydra/launcher"),
    (r"range\(0,8\)", "range(0,1)"),
    (r"hydra\.launcher\.workers=\d+", "hydra.launcher.workers=1"),
]


@dataclass(frozen=True)
class Stand:
    """What stands in for what a reader has.

    Attributes:
        model: A model's folder, in the place of those of the hub.
        tasks: A folder with a folder of rows for each prepared task, and for ``mytask``.
        stages: The first digits of two stages; the first is a ReFT stage on a LoRA stage.
    """

    model: Path
    tasks: Path
    stages: tuple[str, str]

    def in_place(self, text: str) -> str:
        """A command or a snippet with the names of what is really there."""
        first, second = self.stages
        for word, there in {
            "ADAPTER": first,
            "OUTPUTS": "outputs", "SWEEP": "one", "ONE": "one", "TWO": "two", "NAME": "one",
            "STAGE": first, "STAGE...": first, "A": first, "B": second, "FILE": "some.tar",
            "OLD": "outputs", "NEW": "outputs", "DIR": "elsewhere",
        }.items():  # fmt: skip
            text = re.sub(rf"(?<![\w/]){re.escape(word)}(?![\w.=])", there, text)
        few = 'data={"max_train_rows": 32, "max_eval_rows": 24, "dev_size": 0.25}'
        text = text.replace("seed=range(2))", f"seed=range(2), {few})")
        return text.replace("outputs/sweeps/NAME", "outputs/sweeps/one")

    def quick(self, command: str, train: bool) -> str:
        """A sweep's command as it is run here.

        Args:
            command: The command as it stands on the page.
            train: Whether its stages are trained; otherwise they are planned and shown.
        """
        elsewhere = "model.id=" in command or "heft_paper" in command
        own = "mytask" in command
        for long, short in _SHORT if train else ():
            command = re.sub(long, short, command)
        more = []
        if elsewhere:
            command = re.sub(r"\bmodel\.id=\S+|\bdata\.path=\S+", "", command)
            more = [f"model.id={self.model}", f"'data.path={self.tasks}/${{data.name}}'"]
        if own:
            more = [f"data.path={self.tasks}/mytask", "data.dev_size=0.2"]
        if train and not elsewhere and not own:
            return " ".join([command, *more, *FEW])
        asked = [] if "dry_run=" in command else ["hydra.launcher.dry_run=true"]
        return " ".join([command, *more, *asked])
