"""The one exception that speaks to the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend; its text is shown alone, without a traceback.

    The text says what was given, what is allowed, and what to type instead, and
    names the config key where there is one.
    """


class NonFiniteLoss(RuntimeError):
    """A training loss was NaN or infinite; the last good checkpoint is kept."""


class Interrupted(Exception):
    """Training stopped on a signal after writing a checkpoint; asking again resumes it."""
