"""How fast answers of very different lengths are written.

    python -m benchmarks.generation [--prompts 24] [--batch-size 8] [--dtype float32]

The model has the shape of SmolLM2-135M and random weights. Such a model does not end by itself, so
each text is ended at a random length, the same in all rows of the table: transformers' ``generate``
for one prompt at a time (some of them), ``generate`` for batches of prompts of similar length, and
this project's ``continuations``, without and with places that are taken again.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.inputs import save_random_model
from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.data.batches import AnsweredPrompt, collate, length_batches
from heft_pipeline.models.base_model import load_base
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.scoring.continuations import Place, continuations

#: The fewest and the most tokens, as in short word problems and their solutions.
PROMPT, ANSWER = (40, 160), (5, 120)


@dataclass(frozen=True)
class Work:
    """What is written.

    Attributes:
        prompts: N prompts, as token ids.
        lengths: How many tokens each answer has before its end token.
        end: The end token.
    """

    prompts: Sequence[tuple[int, ...]]
    lengths: Sequence[int]
    end: int

    def process(self, places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
        """Make each answer end at its length."""
        logits[:, self.end] = -torch.inf
        for row, (i, written) in enumerate(places):
            if written == self.lengths[i]:
                logits[row, self.end] = torch.inf
        return logits


@dataclass(frozen=True)
class Timed:
    """One row of the table.

    Attributes:
        name: What wrote the texts.
        texts: The texts, without end tokens.
        seconds: How long it took.
    """

    name: str
    texts: Sequence[list[int]]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Written tokens a second; the reading of the prompts is part of the time."""
        return sum(map(len, self.texts)) / self.seconds


def made_up(prompts: int, vocabulary: int, end: int) -> Work:
    """Random prompts and lengths, the same at each call."""
    source = random.Random(0)
    tokens = [token for token in range(vocabulary) if token != end]
    asked = [tuple(source.choices(tokens, k=source.randint(*PROMPT))) for _ in range(prompts)]
    return Work(asked, [source.randint(*ANSWER) for _ in range(prompts)], end)


@torch.no_grad()
def by_transformers(model: AdaptedModel, work: Work, batch_size: int) -> list[list[int]]:
    """What transformers' ``generate`` writes, in batches of similar length."""
    base, found = model.base, [[0]] * len(work.prompts)
    for rows in length_batches(list(map(len, work.prompts)), batch_size):
        asked = [AnsweredPrompt(work.prompts[i], (0,)) for i in rows]
        batch = collate(asked, base.pad_token_id).to(base.device)
        width = batch.input_ids.shape[1]

        def process(
            ids: torch.Tensor, logits: torch.Tensor, rows: list[int] = rows, width: int = width
        ) -> torch.Tensor:
            return work.process([(i, ids.shape[1] - width) for i in rows], logits)

        output = base.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=ANSWER[1] + 1,
            do_sample=False,
            logits_processor=[process],
            pad_token_id=base.pad_token_id,
            eos_token_id=work.end,
        )
        for i, text in zip(rows, output[:, width:].tolist(), strict=True):
            found[i] = text[: text.index(work.end)]
    return found


def side_by_side(
    model: AdaptedModel, work: Work, batch_size: int, refill: bool = True
) -> list[list[int]]:
    """What this project writes; without ``refill``, a place stays empty until all have ended."""
    order = sorted(range(len(work.prompts)), key=lambda i: len(work.prompts[i]))
    together = len(order) if refill else batch_size
    found = [[0]] * len(order)
    for start in range(0, len(order), together):
        rows = order[start : start + together]
        asked = Work([work.prompts[i] for i in rows], [work.lengths[i] for i in rows], work.end)
        texts = continuations(
            model,
            asked.prompts,
            tokens=ANSWER[1] + 1,
            batch_size=batch_size,
            process=asked.process,
        )
        for i, text in zip(rows, texts, strict=True):
            found[i] = text
    return found


def measured(
    model: AdaptedModel, work: Work, batch_size: int, alone: int, clock: Callable[[], float]
) -> list[Timed]:
    """Each way of writing the texts, the slowest first.

    Args:
        model: The model.
        work: What is written.
        batch_size: The most prompts together.
        alone: How many prompts are continued one at a time.
        clock: A clock in seconds.
    """
    some = Work(work.prompts[:alone], work.lengths[:alone], work.end)
    asked: list[tuple[str, Callable[[], list[list[int]]]]] = [
        ("generate, one prompt at a time", lambda: by_transformers(model, some, 1)),
        ("generate, batches", lambda: by_transformers(model, work, batch_size)),
        ("own, places not taken again", lambda: side_by_side(model, work, batch_size, False)),
        ("own", lambda: side_by_side(model, work, batch_size)),
    ]
    first = Work(work.prompts[:1], work.lengths[:1], work.end)
    by_transformers(model, first, 1)  # what is done only once is not part of any row
    side_by_side(model, first, 1)
    found = []
    for name, write in asked:
        start = clock()
        texts = write()
        found.append(Timed(name, texts, clock() - start))
    return found


def show(found: Sequence[Timed]) -> None:
    """Print the table; ratios are of tokens per second, and texts are compared with row 2's."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("what", no_wrap=True)
    for name in ("texts", "tokens", "seconds", "tokens/s", "ratio", "same texts"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        same = sum(map(list.__eq__, row.texts, found[1].texts))
        table.add_row(
            row.name,
            str(len(row.texts)),
            f"{sum(map(len, row.texts)):,}",
            f"{row.seconds:.3g}",
            f"{row.tokens_per_second:.3g}",
            f"{row.tokens_per_second / found[0].tokens_per_second:.3g}",
            f"{same} of {len(row.texts)}",
        )
    Console(width=100, highlight=False).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation")
    parser.add_argument("--prompts", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--alone", type=int, default=1, help="prompts continued one at a time")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--processor-time", action="store_true", help="measure it, where other work runs"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_random_model("smollm2_135m", folder)
        torch.set_default_dtype(torch.float32)
        settings = ModelSettings(id=str(folder), dtype=options.dtype)
        base = load_base(settings, torch.device(options.device))
    size = base.model.get_input_embeddings().weight.shape[0]
    work = made_up(options.prompts, size, base.tokenizer.eos_token_id)
    clock = time.process_time if options.processor_time else time.perf_counter
    with adapted(base, []) as model:
        show(measured(model, work, options.batch_size, options.alone, clock))
    return 0


if __name__ == "__main__":
    sys.exit(main())
