"""What a command needs of its environment's variables."""

import os
import re

from heft_pipeline.errors import UserError

#: Numbers that libraries read when they are first imported: some without a word about a value that
#: is none, others with an error of their own in the middle of a stage.
_NUMBERS = {
    "OMP_NUM_THREADS": "a number of threads",
    "MKL_NUM_THREADS": "a number of threads",
    "WORLD_SIZE": "a number of processes",
    "LOCAL_WORLD_SIZE": "a number of processes",
    "RANK": "a process's number",
    "LOCAL_RANK": "a process's number",
}


def check_environment() -> None:
    """Refuse variables that are to be numbers and are not.

    Raises:
        UserError: The message names the variable.
    """
    for name, what in _NUMBERS.items():
        value = os.environ.get(name, "")
        # OpenMP takes a list, a number for each level of nesting.
        if value and not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", value):
            raise UserError(
                f"{name}={value} in the environment is not {what}; set it to one, e.g. {name}=1, "
                f"or take it out with unset {name}"
            )
