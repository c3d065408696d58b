"""Talk to an adapter, line by line.

heft chat ADAPTER
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.run import run_command
from heft_pipeline.data.chat import conversation
from heft_pipeline.errors import UserError
from heft_pipeline.use import arguments
from heft_pipeline.use.loaded import HeftModel

_ABOUT = (
    "Each line is a turn of a conversation, in the model's chat template; each turn is answered "
    "with all that was said before. A model without a template continues each line by itself. "
    "/task answers a row of the adapter's own task: /task passage=... || question=...; /new "
    "forgets what was said, and Ctrl-D ends."
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_chat, words)


def _chat(words: Sequence[str]) -> int:
    given = _parser().parse_args(words)
    with arguments.loaded(given) as model:
        has_template = bool(getattr(model.tokenizer, "chat_template", None))
        if given.system and not has_template:
            raise UserError("--system is a part of chat templates, and this model has none")
        told: list[dict[str, str]] = []
        if sys.stdin.isatty():
            how = "Ctrl-D ends" if has_template else "no chat template: each line is continued"
            print(f"{model.stage.label} on {printable(str(model.stage.model.name))}; {how}")
        for line in _lines():
            if line == "/new":
                told = []
            elif line.startswith("/task"):
                _answer(model, line.removeprefix("/task"))
            elif has_template:
                told.append({"role": "user", "content": line})
                prompt = conversation(model.tokenizer, told, given.system)
                told.append({"role": "assistant", "content": _said(model, prompt, given)})
            else:
                _said(model, line, given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("chat", "Talk to an adapter, line by line.")
    parser.epilog = _ABOUT
    arguments.add_place(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--max-new-tokens", type=arguments.positive, default=256, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T",
                        help="0: the likeliest token each time")  # fmt: skip
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    return parser


def _lines() -> Iterator[str]:
    """What is typed, without empty lines."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _said(model: HeftModel, prompt: str, given: argparse.Namespace) -> str:
    """Write an answer as it comes, and return it."""
    from transformers import TextStreamer

    from heft_pipeline.use.generating import generate

    sampling: dict[str, Any] = {"do_sample": False}
    if given.temperature > 0:
        sampling = {"do_sample": True, "temperature": given.temperature, "top_p": given.top_p}
    if model.adapted.base.no_cache:  # it writes the likeliest tokens, all at once
        text = model.generate(prompt, max_new_tokens=given.max_new_tokens)
        print(printable(text))
        return text.strip()
    streamer = TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    asked = {**sampling, "streamer": streamer}
    # As it is: a conversation ends where the model's answer begins.
    (text,) = generate(model.adapted, [prompt], 1, given.max_new_tokens, asked)
    return text.strip()


def _answer(model: HeftModel, text: str) -> None:
    """Answer a row that is written as ``column=value || column=value``."""
    row = dict(part.strip().partition("=")[::2] for part in text.split("||") if part.strip())
    try:
        (found,) = model.predict([row])
    except UserError as error:  # a slip of the keyboard does not end the conversation
        print(printable(str(error)), file=sys.stderr)
        return
    scores = "  ".join(f"{name} {value:.3f}" for name, value in found.log_probabilities.items())
    print(printable("  ".join(filter(None, [str(found.prediction), scores]))))
