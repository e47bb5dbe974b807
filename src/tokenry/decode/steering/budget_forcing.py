"""Budget forcing: thinking takes at least and at most so many tokens.

While a row is thinking (`steering.thinking`), with e the end-of-thinking token and n the tokens it
has thought,

    n >= most      e alone
    n < least      not e; with a token `wait`, its probability becomes p(wait) + p(e): whatever
                   would have stopped says "wait" instead

Source: s1: Simple test-time scaling (arXiv 2501.19393), the baseline of Making Small Language
Models Efficient Reasoners: Intervention, Supervision, Reinforcement (arXiv 2505.07961). Ours: the
wait is one token, drawn with the chance of a stop.
"""

from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import ConstraintError, InputError, VocabularyError
from tokenry.decode.steering.base import Example, controller
from tokenry.decode.steering.thinking import Thinking


@controller("budget-forcing", paper=73, examples=lambda: _examples())
class BudgetForcing(Thinking):
    """Thinks at least and at most so long; for `logits_processor=[...]`.

    Args:
        stop: id of the end-of-thinking token.
        most: tokens of thinking before its end, in [0, inf). least: in [0, most].
        wait: id of the token that is said instead of a stop that comes too soon; None: the stop is
            forbidden then.
        start: of `Thinking`.
        prompt_length: see `start`.

    Raises:
        ConstraintError: a row is left with nothing but a stop that is forbidden.
    """

    def __init__(
        self,
        stop: int,
        most: int,
        least: int = 0,
        *,
        wait: int | None = None,
        start: int | None = None,
        prompt_length: int = 0,
    ):
        super().__init__(stop, start, prompt_length)
        in_range("most", most, "[0, inf)", integer=True)
        in_range("least", least, f"[0, {most}]", integer=True)
        in_range("wait", wait, "[0, inf)", integer=True, optional=True)
        if wait == stop:
            raise InputError(f"wait is the stop itself, {stop}")
        self.most, self.least, self.wait = most, least, wait

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `[B, V]` after `input_ids` `[B, T]`."""
        thinking, count = (x.to(scores.device) for x in self.thinking(input_ids, scores))
        if self.wait is not None and self.wait >= scores.shape[-1]:
            raise VocabularyError(f"token {self.wait} is outside the {scores.shape[-1]} logits")
        early, over = thinking & (count < self.least), thinking & (count >= self.most)
        if not bool((early | over).any()):
            return scores
        steered = scores.clone()
        if self.wait is not None:
            instead = torch.logaddexp(scores[:, self.wait].float(), scores[:, self.stop].float())
            steered[:, self.wait] = torch.where(
                early, instead.to(scores.dtype), scores[:, self.wait]
            )
        steered[:, self.stop] = scores[:, self.stop].masked_fill(early, -torch.inf)
        if bool((steered.isneginf().all(-1) & ~over).any()):
            raise ConstraintError("nothing but the end of thinking is left, and it comes too soon")
        ending = torch.full_like(scores, -torch.inf)
        ending[:, self.stop] = 0.0
        return torch.where(over[:, None], ending, steered)


def _examples() -> list[Example]:
    def made(t: Any, length: int, most: int, least: int) -> BudgetForcing:
        return BudgetForcing(t.eos_token_id, most, least, wait=7, prompt_length=length)

    return [Example(lambda t, n, _: made(t, n, 5, 2), lambda t, n, _: made(t, n, 99, 0))]
