"""What a bounded cache would have cost, in one forward instead of one per token.

A `SimulatedCache` keeps every key. Its first forward is the prompt, dense. The next forward gives
it the rest of the text at once; each row of the attention then sees only the keys that the policy
would still hold had the tokens come one by one:

    held_t = keep(score_{t-1}, held_{t-1}) + {t}
    P_t = softmax over held_t,   score_t = score_{t-1} + P_t

`under` copies a cache after its prompt, so that many policies share one prefill. Scores other than
the received attention give the baselines: the earliest tokens (attention sinks), or random ones;
heavy=0 is the sliding window. For rows of equal length without padding.

Source: the masked simulation of "H2O: Heavy-Hitter Oracle" (arXiv 2306.14048), section 5; ours is
teacher-forced and equal to the evicting cache, with original positions.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from tokenry.model.attention.dense import attend_in_chunks, capped
from tokenry.model.attention.interface import observe_attention
from tokenry.model.attention.masks import BlockOfQueries
from tokenry.model.attention.observed_layer import ObservedLayer
from tokenry.model.cache.h2o import H2O, keep_heavy_and_recent
from tokenry.model.cache.policy import observed_layers

Ranking = Literal["attention", "earliest", "random"]


class SimulatedCache(DynamicCache):
    """Prefill once, then `model(rest, past_key_values=cache.under(policy))` for each policy."""

    def __init__(self, model: Any):
        super().__init__(config=model.config)
        self.layers = observed_layers(self.layers, lambda number: SimulatedLayer())
        observe_attention(model)

    def under(self, policy: H2O, ranking: Ranking = "attention", seed: int = 0) -> "SimulatedCache":
        """A copy that goes on under `policy`; `seed` is for the random ranking."""
        generator = torch.Generator().manual_seed(seed)
        after = copy.deepcopy(self)
        for layer in after.layers:
            if isinstance(layer, SimulatedLayer):
                layer.policy, layer.ranking, layer.generator = policy, ranking, generator
        return after

    def scores(self) -> list[Tensor]:
        """Per bounded layer, the attention received so far: [B, H, S]."""
        return [layer.score for layer in self.layers if isinstance(layer, SimulatedLayer)]


class SimulatedLayer(ObservedLayer):
    """All keys, the attention each received, and what the policy would still hold."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = H2O(heavy=0, recent=2**31)
        self.ranking: Ranking = "attention"
        self.generator: torch.Generator | None = None
        self.score: Any = None
        self.prompt = 0

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: BlockOfQueries, **options: Any
    ) -> Tensor:
        if self.score is None:
            self.prompt = key.shape[2]
            output, self.score = attend_in_chunks(query, key, value, new_tokens, **options)
            return output
        table = self.table(query, key, options["scaling"], options["softcap"])
        output, received = attend_in_chunks(
            query, key, value, lambda start, stop: table[:, :, start:stop], **options
        )
        self.score = torch.nn.functional.pad(self.score, (0, query.shape[2])) + received
        return output

    def table(self, query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """bool [B, Hkv, q, S]: the keys each of the new tokens sees under the policy."""
        B, H, q, D = query.shape
        heads, S = key.shape[1], key.shape[2]
        grouped = query.view(B, heads, H // heads, q, D).float()
        logits = grouped @ key.float().transpose(-1, -2).unsqueeze(2) * scaling  # [B, Hkv, G, q, S]
        logits = capped(logits, softcap)
        heavy, recent = self.policy.budget(torch.full((B,), self.prompt, device=key.device))
        score = self._ranked(torch.nn.functional.pad(self.score, (0, q)))
        column = torch.arange(S, device=key.device).expand(B, heads, S)
        kept = column < S - q
        rows = []
        for row in range(q):
            worth = self.policy.worth(score, S - q + row - column)
            written = row if self.policy.prompt_only else 0
            kept = keep_heavy_and_recent(worth, kept, heavy, recent + written)
            kept[..., S - q + row] = True
            rows.append(kept)
            if self.ranking == "attention":
                here = logits[:, :, :, row].masked_fill(~kept.unsqueeze(2), -torch.inf)
                score = score + here.softmax(-1).sum(2)
        return torch.stack(rows, dim=2)

    def _ranked(self, received: Tensor) -> Tensor:
        if self.ranking == "earliest":
            return (
                -torch.arange(received.shape[-1], device=received.device)
                .expand_as(received)
                .float()
            )
        if self.ranking == "random":
            return torch.rand(received.shape, generator=self.generator).to(received.device)
        return received
