"""An adapter as a model of lm-evaluation-harness: ``--model heft --model_args adapter=...``.

Importing this module registers the model. Requests are scored with the adapters' edits made at
positions of the context, as in training, and never in the continuation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from heft_pipeline.data.batches import (
    AnsweredPrompt,
    Batch,
    collate,
    length_batches,
    split_by_tokens,
)
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.errors import UserError
from heft_pipeline.use.loaded import load

#: The most logits of continuations that a forward pass keeps.
_LOGITS = 2**26
_AUTO_BATCH = 32

#: A request of the harness: its texts, and the token ids of its context and its continuation.
Request = tuple[tuple[str, str], list[int], list[int]]


@register_model("heft")
class HeftLM(HFLM):
    """A causal language model with everything on it that a stage and those below it have trained.

    Args:
        adapter: As :func:`heft_pipeline.load` takes it.
        model: The base model, where it is not where it was trained.
        device: As the harness's ``--device``; ``auto`` if it is not given.
        dtype: Of the base's weights; None for the one that it was trained with.
        batch_size: Requests per forward pass; ``auto`` for 32.
        output_dir: Where fingerprints and sweeps are looked for.
        revision: A branch, tag or commit of a hub repository.
        trust_remote_code: Whether the base model's own code may run.
        **others: Other arguments of the harness's ``hf`` model, e.g. ``max_length``.
    """

    def __init__(
        self,
        adapter: str,
        model: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        output_dir: str = "outputs",
        revision: str | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> None:
        self.heft = load(
            adapter,
            model=model,
            device=device or "auto",
            dtype=dtype,
            output_dir=Path(output_dir),
            revision=revision,
            trust_remote_code=bool(trust_remote_code),
        )
        size = _AUTO_BATCH if str(batch_size).startswith("auto") else int(batch_size)
        super().__init__(
            pretrained=self.heft.model,
            tokenizer=self.heft.tokenizer,
            backend="causal",
            batch_size=size,
            **others,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes down about the model."""
        stage = self.heft.stage
        count = sum(parameter.numel() for parameter in self.heft.model.parameters())
        return {
            "model_num_parameters": count,
            "model_dtype": str(self.heft.model.dtype),
            "model_revision": stage.model.revision or "",
            "model_sha": stage.model.content or "",
            "heft_stage": stage.fingerprint,
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the likeliest one."""
        pairs = [self._fitting(context, continued) for _, context, continued in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        vocabulary = int(self.heft.model.config.get_text_config().vocab_size)
        for batch in length_batches([one.read_length for one in pairs], int(self.batch_size)):
            answers = [len(pairs[i].answer) for i in batch]
            for part in split_by_tokens(answers, max(1, _LOGITS // vocabulary)):
                own = batch[part]
                scores = in_parts(self._score, [pairs[i] for i in own], self.heft.device)
                values = [value for some in scores for value in some]
                for i, value in zip(own, values, strict=True):
                    found[i] = value
        for (texts, *_), value in zip(requests, found, strict=True):
            if texts is None:  # a part of a longer text
                continue
            self.cache_hook.add_partial("loglikelihood", texts, value)
        return found

    def _fitting(self, context: Sequence[int], continued: Sequence[int]) -> AnsweredPrompt:
        """A request, with a context that is too long cut at its beginning, as the harness does."""
        room = int(self.max_length) + 1 - len(continued)
        if room < 1:
            raise UserError(
                f"a continuation has {len(continued)} tokens, and the model reads "
                f"{self.max_length}; leave that task out"
            )
        return AnsweredPrompt(tuple(context[-room:]), tuple(continued))

    @torch.no_grad()
    def _score(self, pairs: Sequence[AnsweredPrompt]) -> list[tuple[float, bool]]:
        base = self.heft.adapted.base
        batch = collate(pairs, base.pad_token_id).to(base.device)
        logits = self.heft.adapted.logits(batch).float()
        wanted = batch.labels >= 0
        labels = batch.labels.clamp(min=0)
        scores = logits.log_softmax(dim=-1).gather(2, labels[:, :, None])[:, :, 0]
        likeliest = (logits.argmax(dim=-1) == labels) | ~wanted
        sums = scores.masked_fill(~wanted, 0.0).sum(dim=1).tolist()
        return list(zip(sums, likeliest.all(dim=1).tolist(), strict=True))

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **more: Any
    ) -> torch.Tensor:
        """Continue contexts that are padded on the left, with their edits."""
        base, mask = self.heft.adapted.base, more["attention_mask"]
        if base.no_padding and not bool(mask.all()):
            raise UserError(f"{base.no_padding}; use --batch_size 1")
        for name in ("num_beams", "num_return_sequences"):
            if int(more.get(name) or 1) > 1:  # its stop sequences are looked for in a row a prompt
                raise UserError(f"{name}={more[name]}: the harness reads one text for each prompt")
        own = [tuple(ids[kept.bool()].tolist()) for ids, kept in zip(context, mask, strict=True)]
        batch = self._batch(own, context.shape[1])
        with self.heft.adapted.editing(batch):
            written: torch.Tensor = super()._model_generate(context, max_length, stop, **more)
        return written

    def _batch(self, prompts: Sequence[tuple[int, ...]], width: int) -> Batch:
        base = self.heft.adapted.base
        batch = collate([AnsweredPrompt(ids, (0,)) for ids in prompts], base.pad_token_id)
        if batch.input_ids.shape[1] != width:
            raise UserError("the harness pads contexts in another way than on the left")
        return batch.to(base.device)
