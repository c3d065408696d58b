"""The HEFT paper's own numbers, shown beside measurements of the same settings."""

from pathlib import Path

from heft_pipeline.report.sections import Section, Setting

SOURCE = "arXiv 2509.09801"
#: The accuracy of Llama-2-7B on BoolQ's validation split, by method and epochs of each stage.
_ACCURACY = {("heft", 3): 0.8517, ("lora", 20): 0.8505, ("reft", 20): 0.8336}
_MODEL, _DATA, _EXAMPLES = "llama-2-7b-hf", "boolq", 3270


def paper_accuracy(section: Section, setting: Setting) -> float | None:
    """What the paper reports for a setting.

    Args:
        section: The section that the setting belongs to.
        setting: The setting.

    Returns:
        The accuracy as a share; None where the model, the data or the setting is not the paper's.
    """
    spec = section.spec
    same = (
        Path(spec.model.id).name.lower() == _MODEL
        and Path(str(spec.data.location)).name.lower() == _DATA
        and len(section.ids) == _EXAMPLES
    )
    if not same or len(set(setting.epochs)) != 1:
        return None
    return _ACCURACY.get((setting.method, setting.epochs[0]))
