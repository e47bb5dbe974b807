"""TokenSelect: the whole cache is kept, and each query attends to a selection of it.

Of N keys, a step whose queries have the mean q̄ (over the step's c queries; itself when c = 1) sees

    sinks [0, n_init)  +  the k best of the middle m in [n_init, N - n_local)  +  the last n_local,
    v_m = Σ_h softmax_m(q̄_h · k_{g(h), m}),

the soft vote of the query heads h, of which g(h) = h // (H / Hkv) is the key head: a head has one
vote to hand out, however large its scores. One set serves all heads of a layer. The last set is
used again while cos(q̄, q̄*) >= reuse, q̄* being the query that it was selected for. Up to
n_init + k + n_local keys, and in a prompt's first forward (see `dense_prompt`), all are seen.

Nothing is evicted: tokens can be taken back, and a key that was passed over may be selected later.
A tree of guesses shares one selection, made for the mean of its queries. A token that selects
attends by the scores it voted with, so every key is read once, and the selected values. When a
selection is used again, its keys and values are laid side by side in a buffer of their own
(n_init + k + n_local more columns), in which one column changes per token: attention then reads
only that.

Source: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation via Dynamic
Token-Level KV Cache Selection" (arXiv 2411.02886), and its code for the constants. Keys carry the
rotary phase of their place in the text; renumbering the selected ones is not done. Ours: padding,
rows that select for themselves, dense prompts, budgets as shares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from tokenry.core.checks import within
from tokenry.core.errors import InputError, ModelError
from tokenry.model.attention.dense import attend_densely, attend_to, capped
from tokenry.model.attention.masks import GivenMask, StepMask
from tokenry.model.cache.full import FullLayer, frozen
from tokenry.model.cache.policy import (
    Example,
    PolicyCache,
    cache_policy,
    cache_under,
    check_budget,
    check_size,
    tokens,
)
from tokenry.model.cache.selection import (
    Piece,
    Selection,
    SideBySide,
    best,
    mean_query,
    pooled,
    soft_votes,
    vote,
    weighted_sum,
)


@cache_policy("tokenselect", paper=149, examples=lambda: _examples())
@dataclass(frozen=True)
class TokenSelect:
    """A cache attended to in part: `generate(..., past_key_values=TokenSelect().cache(model))`.

    Defaults are the paper's, `dense_prompt` ours. Prompts are padded on the left; else ModelError.

    Args:
        n_init: first tokens that a query sees. An int counts tokens, a float is a share of the
            prompt (the first forward; each row's own).
        k: selected tokens, counted alike.
        n_local: latest tokens, the query's own included, counted alike.
        reuse: the cosine above which a selection is used again; -1 selects once, 2 always.
        pool: the votes' max-pooling window, odd; 0 for none.
        dense_prompt: whether the first forward attends to everything; if not, and in later forwards
            of many tokens, `chunk` queries at a time share a selection, their own chunk seen
            besides; chunks are counted in the batch's columns, so that a padded row has other ones
            than the row alone.
    """

    n_init: int | float = 128
    k: int | float = 2048
    n_local: int | float = 512
    reuse: float = 0.9
    pool: int = 0
    chunk: int = 512
    dense_prompt: bool = True

    def __post_init__(self) -> None:
        check_budget(n_init=self.n_init, k=self.k, n_local=self.n_local)
        within(self, "[-1, 2]", "reuse")
        within(self, "[0, inf)", "pool", integer=True)
        within(self, "[1, inf)", "chunk", integer=True)
        if self.n_local == 0:
            raise InputError("n_local=0 hides a query's own token from it; give at least 1")
        if self.pool and self.pool % 2 == 0:
            raise InputError(f"pool={self.pool} must be odd, so that it has a middle, or 0")

    @classmethod
    def of_size(cls, size: int | float) -> "TokenSelect":
        """`size` keys (int), or that share of the prompt (float), seen by each query: a sixteenth
        the first ones, a quarter the latest, the rest selected."""
        check_size(size)
        if isinstance(size, float):
            return cls(n_init=size / 16, k=size * 11 / 16, n_local=size / 4)
        n_init, n_local = size // 16, max(1, size // 4)
        return cls(n_init=n_init, k=size - n_init - n_local, n_local=n_local)

    def cache(self, model: Any) -> PolicyCache:
        return cache_under(self, model)

    def layer(self) -> "TokenSelectLayer":
        return TokenSelectLayer(self)

    def budget(self, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n_init, k and n_local in tokens, each [B], for prompts of `length` [B]."""
        n_init, k, n_local = (tokens(n, length) for n in (self.n_init, self.k, self.n_local))
        return n_init, k, n_local.clamp_min(1)


class TokenSelectLayer(FullLayer):
    """One layer's keys and values, its last selection, and that selection's keys side by side."""

    def __init__(self, policy: TokenSelect):
        super().__init__()
        self.policy = policy
        self._start()

    def _start(self) -> None:
        self.selection = Selection(self.policy.reuse)
        self.picked: SideBySide | None = None
        self.spare: list[Tensor] | None = None  # what the last selections' keys were copied to
        self.budget: Any = None  # n_init, k, n_local: [B] each
        self.largest = (0, 0, 0)  # of the rows
        self.uniform = True  # the rows have the same

    @property
    def hit_rate(self) -> float:
        """The share of queries (or chunks) that used the selection of an earlier one."""
        return self.selection.hits / max(1, self.selection.queries)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, new_tokens: StepMask, **options: Any
    ) -> Tensor:
        q = query.shape[2]
        past = self.seen - q
        if self.budget is None:
            self._set_budget(new_tokens.real, *query.shape[::2])
        # a mask of the caller's own may be a tree, whose nodes are never selected from
        together = isinstance(new_tokens, GivenMask) or (past == 0 and self.policy.dense_prompt)
        size = q if together else self.policy.chunk
        outputs = []
        for start in range(0, q, size):
            stop = min(start + size, q)
            mask = new_tokens if size >= q else Piece(new_tokens, start, stop, past)
            part, end = query[:, :, start:stop], past + stop
            if past + start < sum(self.largest):
                dense = attend_densely(part, key[:, :, :end], value[:, :, :end], mask, **options)
                outputs.append(dense)
            else:
                outputs.append(self._attend_in_part(part, end, mask, **options))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]

    def _set_budget(self, real: Tensor | None, rows: int, q: int) -> None:
        length = torch.full((rows,), q) if real is None else real.sum(-1).expand(rows)
        self.budget = self.policy.budget(length)
        n_init, k, n_local = (int(n.max()) for n in self.budget)
        self.largest = n_init, k, n_local
        self.uniform = all(bool((n == n[0]).all()) for n in self.budget)

    def _attend_in_part(self, query: Tensor, end: int, mask: StepMask, **options: Any) -> Tensor:
        """The queries of the columns before `end`, on a selection of the columns before theirs."""
        q, local = query.shape[2], self.largest[2]
        past = end - q
        before = mask.past(0, q)
        mean = mean_query(query, mask.real)
        mean_queries = mean.flatten(1)
        served = self.selection.serves(mean_queries)
        if not bool(served.all()):
            self.picked = None
            if before is None and self.uniform:
                column, score = self._choose(mean, past)
                ready = torch.ones_like(served)
                self.selection.store(~served, mean_queries, column, None, ready, past + 1 - local)
                if q == 1 and mask.causal and not bool(served.any()):
                    return self._attend_by(score, column, end, **options)
            else:
                selected = self._choose_row_by_row(mean, before, past)
                self.selection.store(~served, mean_queries, *selected, past + 1 - local)
        selection: Any = self.selection
        if self.picked is None or frozen(self.picked.states[0]):
            spare = self.spare if self.spare is not None and not frozen(self.spare[0]) else None
            self.picked = SideBySide(selection.column, self.buffers, local, end, spare)
            self.spare = self.picked.states
        if q == 1:
            self.picked.advance(self.buffers, end)
            columns = self.picked.latest()
            keys, values = self.picked.states
        else:
            columns = torch.arange(past + 1 - local, end, device=query.device)
            keys, values = self.picked.followed_by(self.buffers, past + 1 - local, end)
        if q == 1 and selection.real is None and before is None and mask.causal:
            return attend_to(query, keys, values, None, **options)  # everything here is seen
        new = mask(0, q)[:, 0]  # [B or 1, q, q]
        if before is None:
            before = new.new_ones(1, 1, past)
        rows = len(query)
        seen = torch.cat([part.expand(rows, q, -1) for part in (before, new)], dim=-1)
        at = torch.cat([selection.column, columns.expand(rows, -1)], dim=-1)
        seen = seen.gather(2, at[:, None].expand(-1, q, -1))
        if selection.real is not None:
            window = columns > past - self.budget[2][:, None].to(columns)
            seen &= torch.cat([selection.real, window], dim=-1)[:, None]
        return attend_to(query, keys, values, seen[:, None], **options)

    def _attend_by(
        self,
        score: Tensor,
        column: Tensor,
        end: int,
        *,
        scaling: float,
        softcap: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """One query's attention to the selected columns [B, S] and the local ones, from all scores
        [B, Hkv, G, N], which the selection has left: only values are still to be read."""
        rows, heads, group, _ = score.shape
        latest = torch.arange(end - self.largest[2], end, device=column.device)
        seen = torch.cat([column, latest.expand(rows, -1)], dim=-1)
        score = score.gather(-1, seen[:, None, None].expand(-1, heads, group, -1))
        weight = drop(capped(score * scaling, softcap).softmax(-1), dropout)
        output = weighted_sum(weight, seen, self.buffers[1])
        return output.reshape(rows, 1, heads * group, -1)

    def _choose(self, mean: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """Columns [B, n_init + k], where all rows may choose from all columns before the local
        ones, and the scores of every column."""
        n_init, k, n_local = self.largest
        # the whole buffer, spare columns included, since that is contiguous
        score, votes = vote(mean, self.buffers[0], n_init, past + 1 - n_local)
        chosen = n_init + best(pooled(votes, self.policy.pool), k)
        first = torch.arange(n_init, device=chosen.device).expand(len(chosen), -1)
        return torch.cat([first, chosen], dim=-1), score

    def _choose_row_by_row(
        self, mean: Tensor, before: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Columns [B, n_init + k], those that count, and the rows with more than k to choose from:
        with padding, rows begin at different columns, and shares give them different budgets."""
        assert self.keys is not None
        device, rows = mean.device, len(mean)
        n_init, k, n_local = (n[:, None].to(device) for n in self.budget)
        column = torch.arange(past, device=device)
        seen = torch.ones(rows, past, dtype=torch.bool, device=device)
        if before is not None:
            seen = seen & before.any(1)
        if bool((seen[:, :-1] > seen[:, 1:]).any()):
            raise ModelError(
                "a query of TokenSelect sees the latest tokens by their columns, and padding "
                "stands among them: pad the prompts on the left"
            )
        first = seen.long().argmax(-1, keepdim=True)
        window = past + 1 - n_local
        middle = seen & (column >= first + n_init) & (column < window)
        votes = soft_votes(mean, self.keys[:, :, :past], middle, self.policy.pool)
        # best first, and of equal ones the first, as `best` has it
        order = votes.masked_fill(~middle, -1.0).sort(dim=-1, descending=True, stable=True).indices
        best = order[:, : self.largest[1]]
        chosen, order = best.sort(-1)
        chosen_real = middle.gather(1, chosen) & (order < k)
        sinks = first + torch.arange(self.largest[0], device=device)
        sinks_real = (sinks < first + n_init) & (sinks < window)
        sinks = sinks.clamp_max(past - 1)
        sinks_real &= seen.gather(1, sinks)
        real = torch.cat([sinks_real, chosen_real], dim=-1)
        return torch.cat([sinks, chosen], dim=-1), real, middle.sum(-1) > k[:, 0]

    def shortened(self) -> None:
        if self.picked is not None:
            self.picked.end = -1
        if self.selection.end > self.seen + 1 - self.largest[2]:
            self.selection.forget()
            self.picked = None

    def copy(self) -> "TokenSelectLayer":
        twin = super().copy()
        assert isinstance(twin, TokenSelectLayer)
        twin.selection, twin.picked, twin.spare = self.selection.copy(), None, None
        return twin

    def reset(self) -> None:
        super().reset()
        self._start()

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        super().each_row(change)
        self.picked = None
        self.selection.each_row(change)
        if self.budget is not None:
            self.budget = tuple(change(n.to(self.buffers[0].device)) for n in self.budget)


def _examples() -> list[Example]:
    return [
        Example(TokenSelect(10, 100, 10), TokenSelect(1, 3, 2), TokenSelect(0.1, 0.2, 0.15)),
    ]
