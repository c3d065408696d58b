"""How the report writes numbers and verdicts."""

from heft_pipeline.evidence.significance import ALPHA, POWER, Comparison
from heft_pipeline.report.sections import Setting
from heft_pipeline.report.verdicts import Verdict

_MOST_EXAMPLES = 10_000_000


def share(value: float) -> str:
    """A share in percent, e.g. ``61.1%``."""
    return f"{value:.1%}"


def percent(value: float) -> str:
    """A share in percent with two digits behind the point, e.g. ``85.17 %``."""
    return f"{value:.2%}".replace("%", " %")


def interval(low: float, high: float) -> str:
    """An interval of shares in percent, e.g. ``58.0-64.1``."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points with a sign, e.g. ``+0.12``."""
    return f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")


def short(number: float) -> str:
    """A count in at most five characters, e.g. ``69.6k``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def seconds(value: float) -> str:
    """A duration, e.g. ``54.9 s``, ``12 min 5 s`` or ``3 h 20 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def epochs(stage_epochs: tuple[int, ...]) -> str:
    """The epochs of each stage, and their sum where there are several: ``3``, ``3 (6)``."""
    if not stage_epochs:
        return ""
    same = len(set(stage_epochs)) == 1
    each = str(stage_epochs[0]) if same else "+".join(map(str, stage_epochs))
    return each if len(stage_epochs) == 1 else f"{each} ({sum(stage_epochs)})"


def ranks(setting: Setting) -> str:
    """The ranks of the adapters, equal ones once: ``8``, ``16/4``."""
    return joined(setting.ranks)


def joined(numbers: tuple[int, ...]) -> str:
    """Numbers as ``16/4``."""
    return "/".join(map(str, numbers))


def variant(setting: Setting) -> str:
    """The config values that tell a setting from others with its method, epochs and rank."""
    return ", ".join(f"{key}={value}" for key, value in setting.variant.items())


def p_value(value: float) -> str:
    """A p-value, e.g. ``p = 0.034`` or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:#.2g}"


def effect(verdict: Verdict) -> str:
    """What was measured, in one sentence.

    Args:
        verdict: The verdict on a claim that could be tested.

    Returns:
        For instance ``-1.20 points (95 % interval -3.90 to +1.50; p = 0.39, ...)``.
    """
    found = verdict.comparison
    assert found is not None
    adjusted = verdict.adjusted if verdict.adjusted is not None else found.p_value
    return (
        f"{points(found.difference)} points (95 % interval {points(found.low)} to "
        f"{points(found.high)}; {p_value(found.p_value)}, {_with_holm(adjusted)})"
    )


def explanation(verdict: Verdict) -> str:
    """How a verdict came about, and what would decide an open one, for people.

    Args:
        verdict: Any verdict.

    Returns:
        A few sentences.
    """
    found = verdict.comparison
    if found is None:
        return f"{verdict.why[:1].upper()}{verdict.why[1:]}."
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    mean = "" if found.seeds == 1 else " on average"
    sentences = [
        f"On {found.examples:,} examples and {seeds}, only the first is right on "
        f"{found.wins:.0f}{mean}, and only the second on {found.losses:.0f}."
    ]
    if all(verdict.budgets):
        one, two = verdict.budgets
        sentences.append(f"Training took {one:.3g} against {two:.3g} TFLOP.")
    if found.seeds == 1:
        sentences.append("One seed says nothing about how much other seeds would differ.")
    sentences.append(_what_it_takes(found))
    return " ".join(sentences)


def test_name(verdict: Verdict) -> str:
    """The name of the test behind a verdict."""
    found = verdict.comparison
    if found is None:
        return ""
    return "exact McNemar" if found.seeds == 1 else "two-way random effects, seeds and examples"


def _with_holm(adjusted: float) -> str:
    return f"{p_value(adjusted)} after Holm's correction"


def _what_it_takes(found: Comparison) -> str:
    if not found.difference:
        return "There is no difference to detect."
    chance = f"a difference of this size with {POWER:.0%} power at a level of {ALPHA:.0%}"
    examples = found.needed_examples
    if examples is not None and examples <= _MOST_EXAMPLES:
        with_seeds = "" if found.seeds == 1 else f" with {found.seeds} seeds"
        return f"Detecting {chance} takes about {_rounded(examples)} examples{with_seeds}."
    if examples is not None:
        return f"Detecting {chance} takes more than {_MOST_EXAMPLES:,} examples."
    if found.needed_seeds is not None:
        return (
            f"With {found.seeds} seeds, no number of examples would be enough to detect {chance}; "
            f"about {_rounded(found.needed_seeds)} seeds would be enough on these examples."
        )
    return f"Detecting {chance} takes both more seeds and more examples."


def _rounded(number: int) -> str:
    """Two significant digits: more would suggest a precision that an estimate lacks."""
    digits = max(0, len(str(number)) - 2)
    return f"{round(number, -digits):,}"
