"""The rise of a loss between two models that read the same text."""

from heft_pipeline.evidence.comparison import ALPHA, compare
from heft_pipeline.evidence.resampling import Floats, Measurement


def mean_over_windows(values: Floats) -> Measurement:
    """The mean of values that were measured on windows of text, with its 95 % interval.

    With one seed it is Student's interval over windows. With several, both seeds and windows are
    treated as random samples, as for accuracy.

    Args:
        values: [seeds, windows], of the same windows; at least one seed and two windows. For a
            rise, the later model's loss less the earlier one's, window by window.

    Returns:
        The mean with its interval.
    """
    found = compare(values, accuracy=False)
    return Measurement(found.difference, *found.estimate.interval(ALPHA))
