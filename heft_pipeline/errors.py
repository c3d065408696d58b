"""The exceptions that tell the person at the keyboard what happened."""


class UserError(Exception):
    """A problem that the user can fix; its text is shown alone, without a traceback.

    The text says what was given, what is allowed, and what to type instead, and
    names the config key if there is one.
    """


class NonFiniteLoss(RuntimeError):
    """A training loss was NaN or infinite; the last good checkpoint is kept."""


class Interrupted(Exception):
    """Training stopped on a signal after writing a checkpoint; running it again resumes it."""
