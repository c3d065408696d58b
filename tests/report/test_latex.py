"""The tables for a paper: that LaTeX can read them, and that they say what the page says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from heft_pipeline.evidence.claims import parse_claim
from heft_pipeline.report.content import make_report
from heft_pipeline.report.latex import escape, latex, titled
from heft_pipeline.report.options import ReportOptions
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep

PDFLATEX = shutil.which("pdflatex")
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,amssymb}
\setlength{\textwidth}{397pt} % as NeurIPS; the pages of ICML and ACL are wider
\begin{document}
\input{report.tex}
\end{document}
"""
CLAIMS = ("heft@3 > lora@20", "heft@3 = lora@3 +- 20", "heft@3 >= lora@20 - 6", "heft@3 > reft@9")
RUNS = [("method=heft", 0.64), ("method=lora", 0.6), ("method=lora epochs=20", 0.7)]
NASTY = "data.name='50 % of A_B & #1 {x} ~ ^ < >'"


def written(*sweeps: Sweep, claims: tuple[str, ...] = CLAIMS) -> str:
    options = ReportOptions(tuple(map(parse_claim, claims)))
    return latex(make_report(sweeps, options, None))


def with_seeds(count: int) -> list[tuple[str, float]]:
    return [
        (f"{run} seed={seed}", accuracy + 0.004 * seed)
        for run, accuracy in RUNS
        for seed in range(count)
    ]


def rows(text: str, table: int) -> list[list[str]]:
    """The cells of a table's rows, its heading first."""
    body = text.split(r"\begin{tabular}")[table + 1].split(r"\end{tabular}")[0]
    lines = [line.strip() for line in body.splitlines() if line.strip().endswith(r"\\")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))] for line in lines
    ]


def test_the_comparison_has_what_a_paper_shows(tmp_path: Path) -> None:
    text = written(make_sweep(tmp_path, with_seeds(3)))
    heading, always, untouched, *own = rows(text, 0)
    assert heading == [
        "Method", "Epochs", "Rank", "Seeds", r"Acc.\ (\%)", r"95\,\% interval", "Params",
        "Train s", "TFLOP",
    ]  # fmt: skip
    assert always[0] == "always ``true''"
    assert untouched[4] == "50.0"
    assert own[0][:5] == ["HEFT", "3 (6)", "8", "3", "64.4"]
    assert re.fullmatch(r"\d\d\.\d--\d\d\.\d", own[0][5])
    assert own[0][6:] == ["2,000", "12.0", "0.6"]
    assert {len(row) for row in rows(text, 0)} == {9}


def test_the_claims_have_their_difference_interval_p_and_mark(tmp_path: Path) -> None:
    text = written(make_sweep(tmp_path, with_seeds(3)))
    _, *found = rows(text, 1)
    marks = {row[0]: row[-1] for row in found}
    assert marks == {
        "HEFT@3 $>$ LoRA@20": r"$\times$",
        r"HEFT@3 = LoRA@3 $\pm$ 20": r"\checkmark",
        r"HEFT@3 $\geq$ LoRA@20 $-$ 6": "?",
        "HEFT@3 $>$ ReFT@9": "--",
    }
    difference, interval, p = found[0][1:4]
    assert difference == "$-$6.00"
    assert re.fullmatch(r"\[\$-\$\d+\.\d\d, \$-\$\d+\.\d\d\]", interval)
    assert re.fullmatch(r"\$<\$ 0\.001|0\.\d+", p)
    assert found[3][1:4] == ["", "", ""]
    caption = re.sub(r"\s+", " ", text.split(r"\caption{")[2])
    for said in (
        r"\checkmark~supported",
        r"$\times$~contradicted",
        "?~not decided",
        "--~not tested",
    ):
        assert said in caption
    assert "in points of accuracy with its" in caption
    assert "for all 3 claims at once" in caption


def test_a_dagger_marks_what_one_seed_says(tmp_path: Path) -> None:
    text = written(make_sweep(tmp_path, RUNS), claims=CLAIMS[:1])
    assert rows(text, 1)[1][-1] == r"$\times$$^{\dagger}$"
    assert "of these runs only: other seeds may differ" in text
    assert "Intervals say nothing about other seeds." in text
    assert "Seeds" not in rows(text, 0)[0]


def test_what_latex_reads_as_commands_is_escaped() -> None:
    assert escape("50 % of A_B & #1 {x}") == r"50 \% of A\_B \& \#1 \{x\}"
    assert escape("\\ ~ ^ $") == r"\textbackslash{} \textasciitilde{} \textasciicircum{} \$"
    assert (
        escape("\N{MINUS SIGN}1 ≥ 0 … a >= b +- 1") == r"$-$1 $\geq$ 0 \dots{} a $\geq$ b $\pm$ 1"
    )


def test_methods_have_the_names_of_papers() -> None:
    assert titled("reft+lora") == "ReFT+LoRA"
    assert titled("heft@2+1 > lora@3 r8 lora.rank=8") == "HEFT@2+1 > LoRA@3 r8 lora.rank=8"


def test_several_sections_have_tables_with_labels_of_their_own(tmp_path: Path) -> None:
    one = make_sweep(tmp_path, RUNS)
    other = make_sweep(tmp_path, RUNS, name="other", extra=["data.max_eval_rows=500"])
    labels = re.findall(r"\\label\{(.*?)\}", written(one, other))
    assert labels == [
        f"tab:heft-{table}{suffix}" for suffix in ("", "-2") for table in ("comparison", "claims")
    ]


def test_it_is_no_document_and_says_what_it_needs(tmp_path: Path) -> None:
    text = written(make_sweep(tmp_path, RUNS))
    assert r"\documentclass" not in text
    assert r"\usepackage{booktabs,amssymb}" in text.split(r"\begin{table*}")[0]
    assert text.isascii()


@pytest.mark.skipif(PDFLATEX is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("several", [True, False])
def test_latex_compiles_it_and_nothing_is_too_wide(several: bool, tmp_path: Path) -> None:
    runs = RUNS
    if several:
        rates = (0.001, 0.00002)
        runs = [(f"{run} lora.learning_rate={r}", a) for r in rates for run, a in with_seeds(2)]
    text = written(make_sweep(tmp_path, runs, extra=[NASTY]))
    (tmp_path / "report.tex").write_text(text)
    (tmp_path / "document.tex").write_text(DOCUMENT)
    done = subprocess.run(
        [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "document.pdf").is_file()
