"""The claims that a report tests where none are named."""

from collections.abc import Sequence

from heft_pipeline.evidence.claims import Claim, Side
from heft_pipeline.report.sections import Setting

#: The HEFT paper's claims (arXiv 2509.09801, table 1): 3 epochs of each stage against 20 of one.
_PAPER = {("heft", (3, 3)), ("lora", (20,)), ("reft", (20,))}


def default_claims(settings: Sequence[Setting]) -> list[Claim]:
    """The claims that fit some settings.

    Args:
        settings: The settings of a section that are complete.

    Returns:
        That each method of several stages is more accurate than each method of one stage: at equal
        epochs of each stage, at equal total epochs, and as the HEFT paper pairs them.
    """
    trained = [setting for setting in settings if setting.epochs]
    staged = [s for s in trained if len(s.epochs) > 1]
    single = [s for s in trained if len(s.epochs) == 1]
    found = [
        Claim(_side(one), _side(other))
        for comparable in (_equal_each, _equal_total, _paired_by_the_paper)
        for one in staged
        for other in single
        if comparable(one, other)
    ]
    return list(dict.fromkeys(found))


def _side(setting: Setting) -> Side:
    epochs = setting.epochs
    return Side(setting.method, epochs[:1] if len(set(epochs)) == 1 else epochs, None)


def _equal_each(one: Setting, other: Setting) -> bool:
    return set(one.epochs) == set(other.epochs)


def _equal_total(one: Setting, other: Setting) -> bool:
    return one.total_epochs == other.total_epochs


def _paired_by_the_paper(one: Setting, other: Setting) -> bool:
    return {(one.method, one.epochs), (other.method, other.epochs)} <= _PAPER
