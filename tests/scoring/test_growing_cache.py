"""A growing cache holds what each sequence has read, however sequences come and go."""

import random

import torch
from transformers.cache_utils import DynamicCache

from heft_pipeline.models.forward import ReadPrompts
from heft_pipeline.scoring.growing_cache import GrowingCache


def read(prompts: list[torch.Tensor]) -> ReadPrompts:
    """Prompts [heads, T, size], padded on the left with what must never be seen."""
    width = max(prompt.shape[1] for prompt in prompts)
    keys = torch.full((len(prompts), 2, width, 3), torch.nan)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        keys[row, :, width - prompt.shape[1] :] = prompt
        mask[row, width - prompt.shape[1] :] = 1
    keys = torch.where(mask[:, None, :, None] == 1, keys, 7.0)
    cache = DynamicCache()
    for layer in range(2):
        cache.update(keys + layer, -keys - layer, layer)
    return ReadPrompts(torch.zeros(len(prompts), 5), cache, mask)


def test_each_sequence_keeps_its_own_keys_and_values() -> None:
    source = random.Random(0)
    torch.manual_seed(0)
    cache, own = GrowingCache(6), []  # type: GrowingCache, list[torch.Tensor]
    for _ in range(1500):
        action = source.choice(["add", "drop", "step", "step", "step"])
        if action == "add" and (room := 6 - len(own)):
            count = source.randint(1, room)
            new = [torch.randn(2, source.randint(1, 40), 3) for _ in range(count)]
            if source.random() < 0.3:
                new[-1][:] = torch.inf  # a text that went wrong spoils no other
            cache.add(read(new))
            own += new
        elif action == "drop" and own:
            order = cache.drop(source.sample(range(len(own)), source.randint(1, len(own))))
            own = [own[row] for row in order]
        elif action == "step" and own:
            kept, mask, positions = cache.step()
            token = torch.randn(len(own), 2, 1, 3)
            for layer in range(2):
                assert kept.get_seq_length(layer) == mask.shape[1] - 1
                kept.update(token + layer, -token - layer, layer)
            own = [torch.cat([one, token[row]], dim=1) for row, one in enumerate(own)]
            lengths = [one.shape[1] for one in own]
            assert positions[:, 0].tolist() == [length - 1 for length in lengths]
            assert mask.shape == (len(own), max(lengths)), "no column is padding in all rows"
            for layer, found in enumerate(kept.layers):
                for row, one in enumerate(own):
                    seen = mask[row] == 1
                    assert torch.equal(found.keys[row, :, seen], one + layer)
                    assert torch.equal(found.values[row, :, seen], -one - layer)
                    assert found.keys[row, :, ~seen].isfinite().all()
                    assert found.values[row, :, ~seen].isfinite().all()
        assert cache.count == len(own)
