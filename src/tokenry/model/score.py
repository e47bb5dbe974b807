"""Scoring: what a model says about every token of a batch, without holding its logits."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import in_range
from tokenry.core.divergence import Comparison
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, ModelError, ShapeError
from tokenry.core.f_divergence import FDivergence
from tokenry.core.fused import fused_scores, fused_top_k
from tokenry.core.fused_divergence import fused_divergence
from tokenry.core.linear_head import LinearHead
from tokenry.core.scores import Scores
from tokenry.model import compat
from tokenry.model.compat import unwrap
from tokenry.model.output import last_hidden, linear_head

NEEDS = frozenset({"logprob", "entropy", "topk", "hidden", "hidden_states", "divergence"})
MIXTURE = "mixture"
NAMED = re.compile(r"divergence\([\w@]+\)")


def score(
    model: Any,
    batch: TokenBatch,
    needs: Collection[str] = ("logprob",),
    *,
    top_k: int = 10,
    reference: Scores | None = None,
    divergence: FDivergence | Comparison = FORWARD_KL,
    others: Mapping[str, Scores] | None = None,
    prefix: Tensor | None = None,
    temperature: float = 1.0,
    grad: bool = False,
    select: Callable[[Scores], Tensor] | None = None,
    select_needs: Collection[str] = (),
    tokens_per_batch: int = 8192,
) -> Scores:
    """Score the target tokens of a batch.

    A model with an ordinary linear head never makes its logits; any other head falls back to the
    logits of one micro-batch at a time. Where the batch has a column "mixture", [B, T, K] ids, and
    they are not -1, the model reads the mean of their embeddings in place of the token's, and the
    log-probability is the mean of theirs.

    Args:
        needs: any of "logprob", "entropy", "topk", "hidden", "hidden_states" (of every block),
            "divergence", "divergence(NAME)"; just these are computed.
        prefix: [B, n, D] embeddings (a soft prompt) that stand before each row.
        reference: another model's scores of the same batch, made with "hidden", for the per-token
            D(reference || model).
        others: further ones by name, for "divergence(NAME)".
        divergence: which D, or a `Comparison` (temperature, top-k) for all of them.
        temperature: divides the logits, > 0: the scores are about the distribution that is sampled
            from at it, and so is the head that they carry.
        grad: keep the graph, so that a loss can be differentiated.
        select: which targets [B, T] bool the scores are about, from what `select_needs` say of all
            of them, without gradient. The head then reads, forward and backward, these rows alone.
        tokens_per_batch: rows go through the model in micro-batches of at most this many positions,
            padding included (at least one row); rows of similar length go together.

    Raises:
        InputError: a need it does not know or cannot meet.
    """
    in_range("temperature", temperature, "(0, inf)")
    needs, first = set(needs), set(select_needs)
    compared = {
        need: need[len("divergence(") : -1] for need in needs | first if NAMED.fullmatch(need)
    }
    if unknown := (needs | first) - NEEDS - set(compared):
        raise InputError(f"unknown needs {sorted(unknown)}; known: {sorted(NEEDS)}")
    if "divergence" in needs | first:
        compared["divergence"] = "reference"
    sources = {"reference": reference, **(others or {})}
    for need, name in compared.items():
        source = sources.get(name)
        if source is None or (source.hidden is None and source.full_logits is None):
            raise InputError(f'"{need}" needs a {name} scored with needs=(..., "hidden")')
        if not torch.equal(source.mask.cpu(), batch.target.cpu()):
            raise ShapeError(f"{name} scored other tokens than this batch's targets")
    kept = needs | first | ({"divergence"} if compared else set())  # how the states are kept
    batch = batch.to(next(model.parameters()).device)
    with nullcontext() if grad else torch.no_grad():
        head = linear_head(model)
        if head is not None and temperature != 1.0:
            head = replace(head, temperature=head.temperature * temperature)
        positions, flat = [], []
        for rows in _micro_batches(batch, tokens_per_batch):
            where, states, logits = _predicting_states(
                model, batch, rows, head is None, "hidden_states" in needs, prefix
            )
            positions.append(where)
            if logits is not None:
                logits = logits if temperature == 1.0 else logits.float() / temperature
                states |= _from_logits(logits, batch, where, kept, top_k)
            flat.append(states)
        where = torch.cat(positions)  # [n, 2]
        values = {name: torch.cat([part[name] for part in flat]) for name in flat[0]}

        def scores_of(wanted: set[str]) -> Scores:
            made = dict(values)
            if head is not None:
                made |= _from_hidden(made["hidden"], head, batch, where, wanted, top_k)
            for need in wanted & set(compared):
                made[need] = _divergence(made, head, sources[compared[need]], where, divergence)
            return _assemble(batch, where, made, head, wanted)

        if select is not None:
            with torch.no_grad():
                chosen = select(scores_of(first)).to(batch.target.device) & batch.target
            rows = chosen[where[:, 0], where[:, 1]]
            where, values = where[rows], {name: value[rows] for name, value in values.items()}
            batch = replace(batch, target=chosen)
        return scores_of(needs)


def probe_logits(model: Any) -> Tensor:
    """The logits of eight arbitrary tokens, float32, in whatever mode the model is."""
    table = unwrap(model).get_input_embeddings().weight
    ids = torch.linspace(len(table) // 4, len(table) - 1, 8, device=table.device).long()
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits.float()


def _micro_batches(batch: TokenBatch, budget: int) -> Iterator[Tensor]:
    order = batch.lengths.argsort(stable=True)
    lengths = batch.lengths[order].tolist()
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > budget:
            yield order[start:end]
            start = end


def _predicting_states(
    model: Any,
    batch: TokenBatch,
    rows: Tensor,
    with_logits: bool,
    every_block: bool = False,
    prefix: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """For the targets in `rows`: their places [n, 2] (row, position), the hidden states that
    predict them ("hidden" [n, D] and, if wanted, "block 0" ... of every block), and the logits
    [n, V] if wanted.

    The forward pass goes through the outermost wrapper, so that distributed training sees it; the
    last hidden state is caught on its way from the decoder to the head.
    """
    part = batch.select(rows)
    used = part.attention.any(0).nonzero()[:, 0]
    first, last = int(used[0]), int(used[-1]) + 1
    # a model that takes padding for text reads every row from its first token on
    together = compat.reads_left_padding(model)
    start = torch.full_like(rows, first) if together else part.attention.int().argmax(1)
    columns = start[:, None] + torch.arange(last - first, device=rows.device)
    inside = columns < part.ids.shape[1]
    columns = columns.clamp_max(part.ids.shape[1] - 1)
    ids, attention, target = (
        table.gather(1, columns) for table in (part.ids, part.attention, part.target)
    )
    attention, target = attention & inside, target & inside
    inputs: dict[str, Tensor] = {"input_ids": ids}
    shift = 0
    if prefix is not None or MIXTURE in part.columns:
        table = unwrap(model).get_input_embeddings()
        inputs = {"inputs_embeds": table(ids)}
    if MIXTURE in part.columns:
        drawn = part.columns[MIXTURE][torch.arange(len(ids), device=ids.device)[:, None], columns]
        mean = table(drawn.clamp_min(0)).mean(2)
        mixed = (drawn[..., :1] >= 0) & inside[..., None]
        inputs = {"inputs_embeds": torch.where(mixed, mean, inputs["inputs_embeds"])}
    if prefix is not None:
        shift = prefix.shape[1]
        embedded = inputs["inputs_embeds"]
        inputs = {"inputs_embeds": torch.cat([prefix[rows].to(embedded.dtype), embedded], 1)}
        attention = torch.cat([attention.new_ones(len(ids), shift), attention], 1)
    with last_hidden(model) as caught:
        output = model(
            **inputs,
            attention_mask=attention.long(),
            position_ids=(attention.cumsum(1) - 1).clamp_min(0),
            logits_to_keep=0 if with_logits else 1,
            use_cache=False,
            **({"output_hidden_states": True} if every_block else {}),
        )
    hidden = caught[-1]
    if hidden.shape[:2] != attention.shape:
        raise ModelError(
            f"the model turned {list(attention.shape)} tokens into {list(hidden.shape[:2])} "
            "states: adapters that change the length cannot be scored"
        )
    where = target.nonzero()  # [n, 2]
    row, position = where[:, 0], where[:, 1] - 1 + shift
    logits = output.logits[row, position] if with_logits else None
    positions = torch.stack([rows.to(row.device)[row], columns[row, where[:, 1]]], dim=1)
    states = {"hidden": hidden[row, position]}
    if every_block:
        blocks = output.hidden_states[1:]
        states |= {f"block {n}": block[row, position] for n, block in enumerate(blocks)}
    return positions, states, logits


def _from_hidden(
    hidden: Tensor, head: LinearHead, batch: TokenBatch, where: Tensor, needs: set[str], top_k: int
) -> dict[str, Tensor]:
    values = {}
    if needs & {"logprob", "entropy"}:
        targets = batch.ids[where[:, 0], where[:, 1]]
        fused = fused_scores(hidden, head, targets, entropy="entropy" in needs)
        values["logprob"] = fused.logprob
        if MIXTURE in batch.columns:
            rows, drawn = _mixtures(batch, where)
            states = hidden[rows].repeat_interleave(drawn.shape[1], 0)
            each = fused_scores(states, head, drawn.flatten())
            mean = each.logprob.view(drawn.shape).mean(-1)
            values["logprob"] = fused.logprob.index_put((rows,), mean)
        if fused.entropy is not None:
            values["entropy"] = fused.entropy
    if "topk" in needs:
        values["topk_ids"], values["topk_logprobs"] = fused_top_k(hidden, head, top_k)
    return values


def _from_logits(
    logits: Tensor, batch: TokenBatch, where: Tensor, needs: set[str], top_k: int
) -> dict[str, Tensor]:
    logprobs = logits.float().log_softmax(-1)  # [n, V]
    targets = batch.ids[where[:, 0], where[:, 1]]
    values = {"logprob": logprobs.gather(1, targets[:, None])[:, 0]}
    if MIXTURE in batch.columns:
        rows, drawn = _mixtures(batch, where)
        mean = logprobs[rows].gather(1, drawn).mean(-1)
        values["logprob"] = values["logprob"].index_put((rows,), mean)
    if "entropy" in needs:
        values["entropy"] = torch.special.entr(logprobs.exp()).sum(-1)
    if "topk" in needs:
        best = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1)
        values["topk_ids"], values["topk_logprobs"] = best.indices, best.values
    if needs & {"hidden", "divergence"}:
        values["full_logits"] = logits.float()
    return values


def _mixtures(batch: TokenBatch, where: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the targets at `where` are mixtures, [m], and of which ids, [m, K]."""
    drawn = batch.column(MIXTURE)[where[:, 0], where[:, 1]]
    rows = (drawn[:, 0] >= 0).nonzero()[:, 0]
    return rows, drawn[rows]


def _divergence(
    values: dict[str, Tensor],
    head: LinearHead | None,
    reference: Scores | None,
    where: Tensor,
    divergence: FDivergence | Comparison,
) -> Tensor:
    assert reference is not None
    if head is not None and reference.head is not None and reference.hidden is not None:
        others = reference.hidden.to(where.device)[where[:, 0], where[:, 1]]
        return fused_divergence(values["hidden"], head, others, reference.head, divergence)
    own = values["full_logits"] if head is None else head.logits(values["hidden"])
    order = torch.full_like(reference.ids, -1)
    order[reference.mask] = torch.arange(int(reference.mask.sum()), device=order.device)
    others = reference.logits()[order[where[:, 0], where[:, 1]]]
    how = divergence if isinstance(divergence, Comparison) else Comparison(divergence)
    return how(others, own)


def _assemble(
    batch: TokenBatch,
    where: Tensor,
    values: dict[str, Tensor],
    head: LinearHead | None,
    needs: set[str],
) -> Scores:
    wanted = set(needs)
    if "topk" in needs:
        wanted |= {"topk_ids", "topk_logprobs"}

    def placed(value: Tensor) -> Tensor:
        empty = value.new_zeros(*batch.ids.shape, *value.shape[1:])
        return empty.index_put((where[:, 0], where[:, 1]), value)

    fields: dict[str, Any] = {
        name: placed(values[name]) for name in wanted & set(values) if "(" not in name
    }
    named = {name[len("divergence(") : -1]: name for name in wanted if NAMED.fullmatch(name)}
    fields["divergences"] = {name: placed(values[need]) for name, need in named.items()}
    if "hidden_states" in needs:
        blocks = [name for name in values if name.startswith("block ")]
        fields["hidden_states"] = tuple(placed(values[name]) for name in blocks)
    if "full_logits" in values:
        by_column = (where[:, 0] * batch.ids.shape[1] + where[:, 1]).argsort()
        fields["full_logits"] = values["full_logits"][by_column]
    return Scores(ids=batch.ids, mask=batch.target, head=head, **fields)
