"""Sweeps from Python, such as a notebook: run one, and read what all of them showed."""

import contextlib
import html
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heft_pipeline.__main__ import compose_and_run
from heft_pipeline.command_line.interrupts import STATUS
from heft_pipeline.errors import UserError
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.storekeeping.inventory import sweeps_of

if TYPE_CHECKING:  # imported where it is used, because it takes long
    import pandas as pd

#: What needs no quotes in a Hydra override and is not taken for anything but text.
_PLAIN = re.compile(
    r"(?!(?:true|false|null|nan|inf|yes|no|on|off)$)[a-z_/][\w./@+-]*", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class Comparison:
    """What a sweep showed.

    Attributes:
        folder: The sweep's folder.
        runs: A row for each run: ``method``, ``epochs``, ranks, ``seed``, ``model``, ``data``,
            ``accuracy`` (a share), ``n_eval``, and costs; see docs/store.md.
        verdicts: A row for each claim: ``claim``, ``verdict``, ``difference`` (a share) with the
            ends ``low`` and ``high`` of its interval, the adjusted ``p``, and ``words``.
        report: The report's page.
    """

    folder: Path
    runs: "pd.DataFrame"
    verdicts: "pd.DataFrame"
    report: Path

    def __repr__(self) -> str:
        told = self.verdicts[["claim", "verdict", "words"]].astype(object).to_numpy().tolist()
        lines = [str(said or f"{claim}: {verdict}") for claim, verdict, said in told]
        return "\n".join([_shown(self.runs).to_string(index=False), *lines, str(self.report)])

    def _repr_html_(self) -> str:
        """For notebooks; nothing in it is markup that a name brought along."""
        verdicts = self.verdicts[["claim", "verdict", "words"]].rename(columns={"words": "said"})
        report = html.escape(str(self.report))
        return "".join(
            [
                _shown(self.runs).to_html(index=False, escape=True, na_rep=""),
                verdicts.to_html(index=False, escape=True, na_rep=""),
                f"<p>{report}</p>",
            ]
        )


def compare(
    *, config_dir: str | Path | None = None, output_dir: str | Path = "outputs", **settings: Any
) -> Comparison:
    """Run a sweep in this process, and read what it showed.

    It is the sweep that ``heft -m`` runs, with the same stages: what is there already is not
    trained again, and after an interruption the same call goes on.

    Args:
        config_dir: A folder with configs of one's own; Hydra's ``--config-dir``.
        output_dir: The folder of all stages and sweeps.
        **settings: As on the command line: ``method=["lora", "heft"], epochs=[3, 20]``. A list is
            swept over; where a setting is itself a list, its value is a list, and a list of lists
            is swept over. A mapping sets what is in a section: ``data={"path": "mine"}`` or
            ``lora={"rank": [8, 16]}``. Names with a dot are given as
            ``**{"hydra.launcher.workers": 2}``. ``experiment="heft_paper"`` adds an experiment.

    Returns:
        The runs, the verdicts and the report.

    Raises:
        UserError: A setting cannot be used, or a stage failed; what is finished is kept.
        KeyboardInterrupt: It was interrupted; the same call goes on from the last checkpoint.
    """
    settings.setdefault("sweep", time.strftime("%Y-%m-%d_%H-%M-%S"))
    words = [*_words(settings), f"output_dir={_value(str(output_dir))}"]
    flags = ["--config-dir", str(config_dir)] if config_dir is not None else []
    with _as_command(["-m", *flags, *words]) as arguments:
        try:
            compose_and_run(arguments)
        except SystemExit as ended:
            if ended.code == STATUS:
                raise KeyboardInterrupt from None
            raise UserError(f"the sweep ended with status {ended.code}") from ended
        except UserError as error:
            raise UserError(str(error)) from None  # what is below says nothing more
    return read_comparison(Path(output_dir) / "sweeps" / str(settings["sweep"]))


def read_comparison(folder: str | Path) -> Comparison:
    """Read what a sweep showed so far.

    Args:
        folder: The sweep's folder.

    Raises:
        UserError: It has no report; a sweep that runs elsewhere has one once it is finished.
    """
    import pandas as pd

    folder = Path(folder)
    claims = folder / "claims.json"
    if not claims.is_file():
        raise UserError(
            f"{folder} has no report yet; heft status shows what is running, and heft report "
            "writes one of what is there"
        )
    wanted = ["claim", "verdict", "difference", "low", "high", "p", "words"]
    found = pd.read_json(claims)
    verdicts = found.reindex(columns=[*wanted, *(c for c in found.columns if c not in wanted)])
    runs = _of_sweep(Sweep(folder))
    return Comparison(folder, runs, verdicts, folder / "report.html")


def results(output_dir: str | Path = "outputs") -> "pd.DataFrame":
    """All runs of all sweeps, also of those that are still running.

    Args:
        output_dir: The folder of all stages and sweeps.

    Returns:
        A row for each run: ``sweep``, ``run``, and the columns of ``results.csv``; see
        docs/store.md. What an unfinished run does not have is missing.

    Raises:
        UserError: There are no sweeps.
    """
    import pandas as pd

    sweeps = sweeps_of(Store(Path(output_dir)))
    if not sweeps:
        raise UserError(f"{output_dir} has no sweeps; give the output_dir of one")
    return pd.concat([_of_sweep(sweep) for sweep in sweeps], ignore_index=True)


def _of_sweep(sweep: Sweep) -> "pd.DataFrame":
    from heft_pipeline.report.records import read_runs, results_table

    records = [record for record in read_runs(sweep) if record.name != "base"]
    table = results_table(records)
    table.insert(0, "run", [record.name for record in records])
    table.insert(0, "sweep", sweep.name)
    return table


def _shown(runs: "pd.DataFrame") -> "pd.DataFrame":
    """The columns that a person looks at first."""
    names = ["method", "epochs", "lora_rank", "reft_rank", "seed", "accuracy", "n_eval"]
    costs = ["trainable_params", "train_seconds", "train_tflop", "status"]
    return runs[[name for name in (*names, *costs) if name in runs and runs[name].notna().any()]]


@contextlib.contextmanager
def _as_command(arguments: list[str]) -> Iterator[list[str]]:
    """Let the process's own arguments be those of a command, and leave its logging alone."""
    before, root = sys.argv, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = ["heft", *arguments]
    try:
        yield arguments
    finally:
        sys.argv = before
        for handler in [one for one in root.handlers if one not in handlers]:
            root.removeHandler(handler)  # Hydra's, which write a run's log
            handler.close()
        for handler in [one for one in handlers if one not in root.handlers]:
            root.addHandler(handler)
        root.setLevel(level)


def _words(settings: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The command-line overrides for settings."""
    for name, value in settings.items():
        key = f"{within}{name}"
        if isinstance(value, Mapping) and not _is_mapping(key):
            yield from _words(value, f"{key}.")
        elif key == "sweep":
            yield f"{key}={value}"
        elif key == "experiment":
            yield f"+{key}={_swept(key, value)}"
        else:
            yield f"{key}={_swept(key, value)}"


def _swept(key: str, value: Any) -> str:
    if isinstance(value, range):
        value = list(value)
    if isinstance(value, list | tuple) and not _is_whole_list(key, value):
        if not value:
            raise UserError(f"{key}=[] has no value to sweep over")
        return ",".join(_value(one) for one in value)
    return _value(value)


def _is_whole_list(key: str, value: Sequence[Any]) -> bool:
    """Whether a list is one value of a setting, and not several to sweep over."""
    one = _declared(key)
    # Some settings are a word or a list, and the word is their default.
    a_list = one is not None and (
        "list" in str(one.type) or (one.type is Any and isinstance(one.default, str))
    )
    return a_list and not any(isinstance(part, list | tuple) for part in value)


def _is_mapping(key: str) -> bool:
    one = _declared(key)
    return one is not None and one.type is dict


def _declared(key: str) -> Any:
    """The dataclass field of a setting; None for what is not this project's setting."""
    from heft_pipeline.settings.schema import HeftConfig

    kind, found = HeftConfig, None
    for part in key.lstrip("+~").split("."):
        if not is_dataclass(kind):
            return None
        found = next((one for one in fields(kind) if one.name == part), None)
        kind = found.type if found is not None else None  # type: ignore[assignment]
    return found


def _value(value: Any) -> str:
    """A value as Hydra's grammar writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_value(k)}:{_value(v)}" for k, v in value.items()) + "}"
    if hasattr(value, "item"):  # a number of numpy's
        return _value(value.item())
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    # Before a quote, and at the end, Hydra takes backslashes for escapes.
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    ending = re.search(r"\\+$", escaped)
    return "'" + escaped + (ending[0] if ending else "") + "'"
