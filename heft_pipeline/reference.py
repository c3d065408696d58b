"""HEFT in one file: train LoRA, freeze it, train ReFT on top of it, and see what each is worth.

This is all that the project computes (arXiv 2509.09801), in PEFT and pyreft alone. The rest of the
project gets the same numbers faster, trains nothing twice, survives interruptions and compares
many runs; ``tests/test_reference.py`` holds its losses and predictions equal to these. On the small
model and task that ship with it, ``python -m heft_pipeline.reference`` takes a minute or two.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pyreft import LoreftIntervention, ReftConfig, ReftModel, get_reft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

HERE = Path(__file__).parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = "{passage}\nQuestion: {question}?\nAnswer:"
ANSWERS = {True: " yes", False: " no"}
# LoRA's settings are those of Hu et al. 2023 (LLM-Adapters). ReFT's are those of Wu et al. 2024
# (arXiv 2404.03592) for commonsense reasoning; it edits the first and the last 7 prompt tokens.
RANK, EDITED, LORA_BATCH, REFT_BATCH = 8, 7, 8, 16  # published batches: 16 and 32

Example = tuple[list[int], int]  # a prompt's token ids, and which answer is the right one
Result = tuple[list[float], list[int], float]  # each step's loss; test predictions, accuracy


class Task(NamedTuple):
    """Rows to train on, to choose the best epoch by, and to report; the answers' token ids."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    answers: list[list[int]]


def read_task(folder: Path, tokenizer: Any, seed: int) -> Task:
    """Read and tokenise a folder of JSON lines, each with a passage, a question and an answer."""

    def read(split: str) -> list[Example]:
        file = folder / f"{split}.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        rows = [json.loads(line) for line in text.split("\n") if line]
        prompts = [tokenizer.encode(PROMPT.format(**row)) for row in rows]
        return list(zip(prompts, (list(ANSWERS).index(row["answer"]) for row in rows), strict=True))

    train, dev, test = read("train"), read("dev"), read("test") or read("validation")
    if not dev:  # the rows that are reported must not choose the epoch as well
        order = np.random.default_rng([seed, 1]).permutation(len(train)).tolist()
        one = [i for i in order if train[i][1] == train[0][1]]  # each answer keeps its share
        count, two = round(0.1 * len(train)), [i for i in order if train[i][1] != train[0][1]]
        held = {*one[: (n := int(count * len(one) / len(train) + 0.5))], *two[: count - n]}
        dev, train = [train[i] for i in sorted(held)], [train[i] for i in sorted({*order} - held)]
    # An answer's tokens can depend on the text before them, so they are cut from the whole.
    start = len(tokenizer.encode(PROMPT))
    answers = [tokenizer.encode(PROMPT + text)[start:] for text in ANSWERS.values()]
    return Task(train, dev, test, answers)


def shuffled_batches(examples: list[Example], size: int, seed: int, epoch: int) -> list[Any]:
    """Cut the examples into random batches of similar lengths, so that little is padded."""
    random = np.random.default_rng([seed, 2, epoch])
    order, batches = random.permutation(len(examples)), []
    for start in range(0, len(order), 32 * size):
        group = sorted(order[start : start + 32 * size], key=lambda i: len(examples[i][0]))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return [[examples[i] for i in batches[j]] for j in random.permutation(len(batches))]


def left_padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """Make one tensor of rows of different lengths, all of which end in its last column."""
    tensors = [torch.tensor(row, device=DEVICE) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left")


def answer_nll(model: Any, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return -log p, in nats, of each answer token after its prompt.

    B pairs of a prompt and an answer of up to K tokens give [B, K], zero left of shorter answers.
    """
    texts = [prompt + answer[:-1] for prompt, answer in pairs]  # nothing follows the last token
    labels = left_padded([answer for _, answer in pairs], -100)  # which cross_entropy ignores
    mask = left_padded([[1] * len(text) for text in texts], 0)
    inputs = {
        "input_ids": left_padded(texts, 0),  # padding is masked, so any id will do
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        "logits_to_keep": labels.shape[1],
    }
    if isinstance(model, ReftModel):  # it must be told which columns to edit, in every layer
        width, edited = mask.shape[1], []
        for text, (prompt, _) in zip(texts, pairs, strict=True):
            columns = list(range(width - len(text), width))[: len(prompt)]
            edited.append(columns[:EDITED] + columns[-EDITED:])
        where = {"sources->base": (None, [edited] * len(model.interventions))}
        logits = model(inputs, unit_locations=where)[1].logits
    else:
        logits = model(**inputs).logits
    return torch.nn.functional.cross_entropy(logits.float().mT, labels, reduction="none")


@torch.no_grad()
def predict(model: Any, task: Task, examples: list[Example]) -> tuple[list[int], float]:
    """Choose the likeliest answer to each prompt, and return how many choices are right."""
    model.eval()
    chosen: list[int] = []
    for start in range(0, len(examples), 64):
        prompts = [prompt for prompt, _ in examples[start : start + 64]]
        nll = answer_nll(model, [(prompt, answer) for prompt in prompts for answer in task.answers])
        chosen += nll.sum(dim=1).view(len(prompts), -1).argmin(dim=1).tolist()
    return chosen, float(np.mean(np.array(chosen) == [gold for _, gold in examples]))


def add_lora(model: Any, seed: int) -> PeftModel:
    """Put a new LoRA adapter on every linear layer: Wx becomes Wx + 2BAx (arXiv 2106.09685)."""
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules="all-linear")
    return get_peft_model(model, config)


def add_reft(model: Any, seed: int) -> ReftModel:
    """Put a new LoReFT edit on every layer's output: h becomes h + R'(Wh + b - Rh)."""
    torch.manual_seed(seed)
    layers = "base_model.model.model.layers" if isinstance(model, PeftModel) else "model.layers"
    shape = {"embed_dim": model.config.hidden_size, "low_rank_dimension": RANK}
    edits = []
    for layer in range(model.config.num_hidden_layers):
        edit = LoreftIntervention(**shape, dtype=torch.float32)
        edits.append({"component": f"{layers}[{layer}].output", "intervention": edit})
    # pyreft freezes the model below, and with it the LoRA adapter that may be there.
    return get_reft_model(model, ReftConfig(representations=edits))


def train(model: Any, task: Task, rate: float, size: int, epochs: int, seed: int) -> Result:
    """Train what has a gradient, go back to the epoch that is best on dev, and take the test."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    steps = epochs * len(shuffled_batches(task.train, size, seed, 0))
    scheduler = get_scheduler("linear", optimizer, round(0.1 * steps), steps)  # a tenth is warm-up
    losses, best, kept = [], -1.0, []
    for epoch in range(epochs):
        # Dropout is for an adapter in training, and a LoRA adapter below ReFT is finished.
        model.train(not isinstance(model, ReftModel))
        for batch in shuffled_batches(task.train, size, seed, epoch):
            pairs = [(prompt, task.answers[right]) for prompt, right in batch]
            loss = answer_nll(model, pairs).sum() / sum(len(answer) for _, answer in pairs)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        _, accuracy = predict(model, task, task.dev)
        print(f"  epoch {epoch + 1}: last loss {losses[-1]:.3f}, dev accuracy {accuracy:.1%}")
        if accuracy > best:  # of equally good epochs, the first
            best, kept = accuracy, [parameter.detach().clone() for parameter in trained]
    for parameter, values in zip(trained, kept, strict=True):
        parameter.data.copy_(values)
    return losses, *predict(model, task, task.test)


def main(arguments: list[str] | None = None) -> dict[str, Result]:
    """Train ReFT, LoRA and HEFT, and print how often each is right."""
    parser = argparse.ArgumentParser(description="What do LoRA, ReFT and HEFT make of a model?")
    parser.add_argument("--model", default=HERE / "models/tiny", help="built like Llama")
    parser.add_argument("--data", type=Path, default=HERE / "data/demo/files", help="a folder")
    parser.add_argument("--epochs", type=int, default=3, help="for each adapter")
    parser.add_argument("--seed", type=int, default=0)
    rates = parser.add_argument_group("learning rates; the defaults suit the small default model")
    rates.add_argument("--lora-rate", type=float, default=2e-3, help="published: 3e-4")
    rates.add_argument("--reft-rate", type=float, default=5e-4, help="published: 9e-4")
    args = parser.parse_args(arguments)

    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(DEVICE)
    task = read_task(args.data, AutoTokenizer.from_pretrained(args.model), args.seed)
    lora_schedule = (args.lora_rate, LORA_BATCH, args.epochs, args.seed)
    reft_schedule = (args.reft_rate, REFT_BATCH, args.epochs, args.seed)
    results: dict[str, Result] = {"untouched": ([], *predict(base, task, task.test))}
    # ReFT alone comes before LoRA, because PEFT puts LoRA into the base model itself.
    print("ReFT")
    results["ReFT"] = train(add_reft(base, args.seed), task, *reft_schedule)
    print("LoRA")
    lora = add_lora(base, args.seed)
    results["LoRA"] = train(lora, task, *lora_schedule)
    # And this is all that HEFT is: ReFT once more, on what LoRA has made of the model.
    print("HEFT")
    results["HEFT"] = train(add_reft(lora, args.seed), task, *reft_schedule)
    for name in ("untouched", "LoRA", "ReFT", "HEFT"):
        print(f"{name:<10}{results[name][-1]:6.1%}")
    return results


if __name__ == "__main__":
    main()
