"""ASAp as a logits processor: `model.generate` under a constraint, learning from text to text.

    z'_v = z_v + log c~(uv)   if the constraint accepts v after u, else -inf

with c~ the learned upper bound on the probability that the model completes a prefix to an accepted
text. The first text is drawn as by masking; later ones come ever closer to the model's distribution
given the constraint.

    asap = ASApProcessor(grammar, prompt_length=inputs["input_ids"].shape[1])
    for _ in range(100):
        model.generate(**inputs, do_sample=True, top_k=0, logits_processor=[asap])

What is learned holds for the distribution that is sampled from: leave temperature at 1 and top-k
and top-p off. `decode.samplers.asap` has weights that make every text count right, and batches that
learn.

Source: Grammar-Aligned Decoding (arXiv 2405.21047).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import in_range, one_of
from tokenry.core.errors import ConstraintError, ShapeError
from tokenry.decode.constraints.base import Constraint, State, refuse
from tokenry.decode.samplers.asap import Remembered, RememberedState, distinct_nodes
from tokenry.decode.samplers.base import DEAD, fitted_mask
from tokenry.decode.samplers.prefix_trie import Node, visit
from tokenry.decode.steering.base import Example, controller

Row = tuple[int, ...]


@controller("asap", paper=17, examples=lambda: _examples())
class ASApProcessor(LogitsProcessor):
    """Masks by a constraint and corrects for what is known of the future.

    Args:
        constraint: None leaves everything as it is.
        prompt_length: columns of `input_ids` that are the prompt, padding included.
        max_new_tokens: the limit given to `generate`, so that the last token ends the text and what
            the limit makes impossible is learned; None: texts may be cut off.
        memory: the tries of another processor for the same model and constraint.
        when_empty: what to do where nothing is left, "raise" a ConstraintError or "end" the text,
            unfinished as it is; either way the dead end is avoided from then on.
    """

    def __init__(
        self,
        constraint: Constraint | None,
        prompt_length: int = 0,
        *,
        max_new_tokens: int | None = None,
        memory: dict[Row, Node] | None = None,
        when_empty: Literal["raise", "end"] = "raise",
    ):
        in_range("prompt_length", prompt_length, "[0, inf)", integer=True)
        in_range("max_new_tokens", max_new_tokens, "[1, inf)", integer=True, optional=True)
        one_of("when_empty", when_empty, ("raise", "end"))
        self.constraint, self.prompt_length = constraint, prompt_length
        self.max_new_tokens, self.when_empty = max_new_tokens, when_empty
        self.memory: dict[Row, Node] = {} if memory is None else memory
        self._before: dict[Row, tuple[RememberedState, Tensor | None]] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] of the next tokens after `input_ids` [B, T]."""
        if len(input_ids) != len(scores):
            raise ShapeError(f"{len(input_ids)} rows of ids, but {len(scores)} rows of logits")
        if self.constraint is None:
            return scores
        rows: list[Row] = [tuple(row) for row in input_ids.tolist()]
        states = [self._state(row) for row in rows]
        going = [index for index, state in enumerate(states) if not state.finished]
        self._before = {rows[index]: (states[index], None) for index in range(len(rows))}
        if not going:
            return scores
        nodes, where, first = distinct_nodes([states[index] for index in going])
        firsts = [going[index] for index in first]
        masks = torch.stack([fitted_mask(states[index], scores.shape[-1]) for index in firsts])
        log_p = scores[firsts].double().log_softmax(-1)
        log_p = log_p.masked_fill(~masks.to(scores.device), DEAD)  # [n, V]
        log_future = visit(nodes, log_p).masked_fill(log_p.isneginf(), DEAD)
        self._before |= {rows[index]: (states[index], log_p[n]) for n, index in enumerate(firsts)}
        steered = scores.clone()
        steered[going] += log_future[where].to(scores.dtype)
        empty = [index for index in going if bool(steered[index].isneginf().all())]
        if empty and self.when_empty == "raise":
            raise ConstraintError(
                f"nothing can follow in row {empty[0]} after {list(rows[empty[0]][-8:])}: the "
                'constraint, and what is left of the logits, allow no token; when_empty="end" '
                "ends such texts"
            )
        for index in empty:
            steered[index, sorted(self.constraint.eos)] = 0.0
        return steered

    def _state(self, row: Row) -> RememberedState:
        """The state after a row, whose last token has become known with this call."""
        if row in self._before:
            return self._before[row][0]
        state, log_p = self._before.get(row[:-1], (None, None))
        if state is not None and len(row) > self.prompt_length:
            if log_p is not None and state.allows(row[-1]):
                state.node.try_token(row[-1], log_p)
            return self._read_on(state, row[-1:])
        prompt, text = row[: self.prompt_length], row[self.prompt_length :]
        root = self.memory.setdefault(prompt, Node())
        assert self.constraint is not None
        start = Remembered(self.constraint, root, self.max_new_tokens).begin(prompt)
        return self._read_on(start, text)

    def _read_on(self, state: RememberedState, tokens: Row) -> RememberedState:
        for token in tokens:
            if state.finished:
                break
            if state.allows(token):
                state = state.advance(token)
            elif token in state.constraint.eos:  # ended in a dead end, or by something else
                return RememberedState(
                    state.constraint, _Ended(state.constraint.vocab_size), state.node, state.depth
                )
            else:
                raise ConstraintError(
                    f"token {token}, {state.depth} tokens after the prompt, is not one that the "
                    "constraint allows: let no other processor write it, or set prompt_length"
                )
        return state


@dataclass(frozen=True)
class _Ended:
    """The state of a text that was given up."""

    vocab_size: int
    complete: bool = False
    finished: bool = True
    mask_cost: float = 1.0

    def allows(self, token: int) -> bool:
        return False

    def mask(self) -> Tensor:
        return torch.zeros(self.vocab_size, dtype=torch.bool)

    def advance(self, token: int) -> State:
        raise refuse(token, "after the end")


def _examples() -> list[Example]:
    from tokenry.decode.constraints.grammar import Grammar

    return [
        Example(
            lambda t, length, _: ASApProcessor(Grammar.regex("[a-z ]*", t), length),
            lambda t, length, _: ASApProcessor(None, length),
        )
    ]
