"""What surrounds every command line, so that whatever happens ends in one message."""

import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import heft_pipeline
from heft_pipeline.command_line.interrupts import STATUS, interruptible
from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.command_line.streams import lost_output, prepare_streams
from heft_pipeline.errors import reason

_LONGEST = 300
#: How OmegaConf words a UserError that was raised while a value was resolved.
_RESOLVING = re.compile(r"UserError raised while resolving interpolation: (.*)")
#: Their classes are named, not imported: importing Hydra takes long, and most errors are others.
_OF_HYDRA = {"HydraException", "OmegaConfBaseException"}


def run_command(
    command: Callable[[Sequence[str]], int],
    arguments: Sequence[str] | None = None,
    *,
    elsewhere: str = "choose another place with --output-dir DIR",
    kept: str = "",
) -> int:
    """Run a command line; an error, or Ctrl-C, becomes one message on standard error.

    Args:
        command: Takes the arguments and returns the exit status.
        arguments: The arguments without the program's name; None for the process's own.
        elsewhere: What to do to have files written in another place.
        kept: What to say about what is there after Ctrl-C, as a sentence.

    Returns:
        The command's exit status, 1 after an error, or 130 after Ctrl-C.
    """
    if arguments is None:
        _leave_ascii_behind()
    prepare_streams()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with interruptible(kept) as just_interrupted:
            try:
                status = command(given)
            except Exception as error:
                unforeseen = reason(error) is None
                if _stems_from_interrupt(error) or (unforeseen and just_interrupted()):
                    raise KeyboardInterrupt from error
                _tell(error, given, elsewhere)
                status = 1
            if status == 0 and (lost := lost_output()):
                print(f"Error: standard output: {lost.strerror}", file=sys.stderr)
                status = 1
            return status
    except KeyboardInterrupt:
        if _show_traceback():
            traceback.print_exc()
        print(f"Interrupted. {kept}".strip(), file=sys.stderr)
        return STATUS


def _leave_ascii_behind() -> None:
    """Start this process again in Python's UTF-8 mode where its locale knows ASCII alone.

    There, names and prompts on the command line are bytes that no file can be written with and
    that give a stage another fingerprint than in other locales, and files are read as ASCII. What
    is shown keeps its encoding.
    """
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    shown = {"PYTHONIOENCODING": sys.stdout.encoding} if sys.stdout else {}
    os.execve(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        {**shown, **os.environ, "PYTHONUTF8": "1"},
    )


def _stems_from_interrupt(error: BaseException | None) -> bool:
    """Whether a library has made another error of a Ctrl-C, as imports of compiled code do."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _show_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _tell(error: Exception, arguments: Sequence[str], elsewhere: str) -> None:
    if _show_traceback():
        print(masked("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    said = _of_hydra(error) or reason(error, elsewhere)
    if said is None:
        lines = str(error).strip().splitlines() or ["no details"]
        where = _keep(error, arguments)
        said = (
            f"{type(error).__name__}: {lines[0][:_LONGEST]} (this was not foreseen; please report "
            + (
                f"it with the file {where}, which has the command and the traceback)"
                if where
                else "it with what the same command shows with HYDRA_FULL_ERROR=1)"
            )
        )
    print(f"Error: {printable(masked(said))}", file=sys.stderr)


def _of_hydra(error: Exception) -> str | None:
    """Hydra's message; below it OmegaConf's, which names the key."""
    names = [{base.__name__ for base in type(one).__mro__} for one in (error, error.__cause__)]
    if not names[0] & _OF_HYDRA:
        return None
    if found := _RESOLVING.match(str(error).strip()):
        return found.group(1)
    texts = [str(error), *([str(error.__cause__)] if "OmegaConfBaseException" in names[1] else [])]
    said = "\n".join(text.strip() for text in texts)
    if "is not a ListConfig" in said and (key := re.search(r"full_key: (\S+)", said)):
        said += f"\n{key[1]} is a list: write it in brackets, e.g. {key[1]}=[a,b]"
    return said


def _keep(error: Exception, arguments: Sequence[str]) -> Path | None:
    """Write a traceback where the output is, or else among the temporary files."""
    import tempfile

    text = "\n".join(
        [
            f"command: {[*sys.orig_argv[:1], sys.argv[0], *arguments]}",
            f"heft_pipeline {heft_pipeline.__version__}",
            f"Python {sys.version}",
            platform.platform(),
            "".join(traceback.format_exception(error)),
        ]
    )
    name = time.strftime(f"error-%Y%m%d-%H%M%S-{os.getpid()}.log")
    for folder in (_output_folder(arguments), Path(tempfile.gettempdir())):
        try:
            if folder.is_dir():
                kept = masked(text)
                (folder / name).write_text(kept, encoding="utf-8", errors="backslashreplace")
                return folder / name
        except OSError:
            continue  # a full or read-only disk; the next place may be another
    return None


def _output_folder(arguments: Sequence[str]) -> Path:
    asked = re.findall(r"^(?:--output-dir[=\n]|output_dir=)(.+)$", "\n".join(arguments), re.M)
    return Path(asked[-1] if asked else "outputs")
