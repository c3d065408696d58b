"""Keys, tokens and passwords stay where they were given: no file and no message has them.

A secret is the value of an environment variable that is named like one, a token in the form of a
well-known service, or a password within an address. In a setting, which is written to several
files, it is refused; in messages, logs and tracebacks, it is masked.
"""

import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence

from heft_pipeline.errors import UserError

#: Stands for a secret.
MASK = "[secret]"
_NAME = (
    r"(?:[A-Za-z0-9]+_)*(?:API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|"
    r"CREDENTIALS?)(?:_[A-Za-z0-9]+)*"
)
_NAMED = re.compile(_NAME, re.IGNORECASE)
#: The forms of Hugging Face, OpenAI and Anthropic, AWS, GitHub and Slack.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|"
    r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|xox[abpr]-[A-Za-z0-9-]{10,})"
)
#: A password in an address, between its user's name and the host.
_ADDRESS = re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)")
#: A variable that a setting would read, or set for a shell.
_READ = re.compile(r"\$\{oc\.env:\s*['\"]?(" + _NAME + r")\b", re.IGNORECASE)
_SET = re.compile(rf"(?<![\w.])(?=[A-Z0-9_]+=)({_NAME})=(?=[^\s$])")
_SHORTEST = 8


def masked(text: str) -> str:
    """Text without secrets.

    Args:
        text: A message, a log's line or a traceback.

    Returns:
        The text with :data:`MASK` in place of each secret.
    """
    for value in _values():
        if value in text:
            text = text.replace(value, MASK)
    return _ADDRESS.sub(MASK, _TOKEN.sub(MASK, text))


class MaskedFormatter(logging.Formatter):
    """Formats the lines of a log without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        return masked(super().format(record))


def refuse_secret(key: str, value: object) -> None:
    """Refuse a secret as a setting's value, because settings are written to files.

    Args:
        key: The setting's key.
        value: Its value; lists and mappings are looked through.

    Raises:
        UserError: It holds one; the message does not.
    """
    if isinstance(value, dict):
        for name, own in value.items():
            refuse_secret(f"{key}.{name}", own)
    elif isinstance(value, list | tuple):
        for own in value:
            refuse_secret(key, own)
    elif isinstance(value, str):
        for secret, name in _values().items():
            if secret in value:
                raise _refusal(key, f"holds the value of ${name}")
        if _TOKEN.search(value):
            raise _refusal(key, "holds a token")
        if _ADDRESS.search(value):
            raise _refusal(key, "holds an address with a password")
        if found := _SET.search(value):
            raise _refusal(key, f"sets {found[1]}")


def refuse_secrets_typed(arguments: Sequence[str]) -> None:
    """Refuse a command line with a secret before anything is written, as commands are kept.

    Args:
        arguments: The arguments without the program's name.

    Raises:
        UserError: One holds a secret, or would read one into a setting.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        key = key.lstrip("+~")
        last = re.split(r"[./@]", key)[-1]
        refuse_secret(masked(key), value)
        if found := _READ.search(value):
            raise _refusal(key, f"reads {found[1]} from the environment")
        if key == "hydra.job.env_copy":  # Hydra writes the values, too
            refuse_variables(key, re.findall(r"\w+", value))
        if value and _is_named(last) and last not in _SETTINGS and not key.startswith("data."):
            raise _refusal(key, "is named like a secret")


def refuse_variables(key: str, names: Iterable[object]) -> None:
    """Refuse variables that are named like secrets where their values are written to files.

    Args:
        key: The setting that names them.
        names: The variables' names.

    Raises:
        UserError: One is named so.
    """
    for name in map(str, names):
        if _is_named(name):
            raise _refusal(key, f"has {name}")


#: Settings of this project that are named like a secret and are none.
_SETTINGS = {"end_token"}


def _refusal(key: str, what: str) -> UserError:
    return UserError(
        f"{key} {what}, and settings and commands are written to files that are shared; leave it "
        "out, and give it in the environment alone (HF_TOKEN, WANDB_API_KEY) or to the service's "
        "own login (`hf auth login`, `wandb login`)"
    )


def _values() -> dict[str, str]:
    """The environment variables that are named like secrets, by value, the longest value first."""
    found = {
        value: name
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and not value.startswith("/") and _is_named(name)
    }
    return dict(sorted(found.items(), key=lambda one: len(one[0]), reverse=True))


@functools.lru_cache(maxsize=4096)
def _is_named(name: str) -> bool:
    return _NAMED.fullmatch(name) is not None
