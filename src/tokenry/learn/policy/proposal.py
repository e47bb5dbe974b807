"""Training a proposal for GUARD: a policy moved towards the model given a constraint.

    g(y) = a(y) b(y) / Z                             the model a under the constraint b
    loss = - (1/n) Σ_i  w_i log pi(y_i),   w_i = a(y_i) b(y_i) / (Z q(y_i)),   y_i ~ q = pi

is the distributional policy gradient: its expectation falls along grad KL(g || pi). The smaller
that is, the more often pi satisfies the constraint and the nearer its accepted texts are to g:
KL(g || pi) = KL(g || g') - log(acceptance). It is f-DPG with the forward KL, for constraints: a
text that violates b weighs nothing, so it is given up at the first token that is refused. Z is the
mean of a b / q over every text ever drawn.

With a rare constraint there is nothing to learn from at first. A warm start fits the policy to
texts that the model writes when a prompt asks for the constraint (the prompt left out); the
gradient steps then undo the bias that those texts have.

    proposal, _ = train_proposal(loaded, prompt, constraint, warm_prompt="Use the word ...: ")
    samples = generate(loaded, prompt, constraint, Guard(model=proposal), particles=16)

Source: Guaranteed Generation from Large Language Models (arXiv 2410.06716).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError
from tokenry.decode.constraints.base import Constraint
from tokenry.decode.generate import Prompt, prompt_ids
from tokenry.decode.samplers.base import DEAD
from tokenry.decode.samplers.guard import start
from tokenry.decode.samplers.rejection import Plain, reject
from tokenry.decode.samplers.request import Request
from tokenry.decode.samplers.samples import Samples
from tokenry.decode.samplers.smc import run_smc
from tokenry.learn.fit import fit
from tokenry.learn.policy.f_dpg import f_dpg_loss, pseudo_reward
from tokenry.learn.policy.target import RunningTarget
from tokenry.learn.reference import evaluating

Text = tuple[list[int], bool]  # ids, and whether the end token follows


def dpg_loss(
    policy_logprob: Tensor, target_logprob: Tensor, proposal_logprob: Tensor, log_z: Tensor | float
) -> Tensor:
    """Loss of each sample, [B], from log pi(y), log a(y) b(y) (-inf for a violation) and log q(y).

    f-DPG's loss for the forward KL with the weight P / (Z pi) in place of P / (Z pi) - 1.
    """
    weight = pseudo_reward(policy_logprob.detach(), target_logprob - log_z, FORWARD_KL) + 1
    return f_dpg_loss(policy_logprob, proposal_logprob, weight)


@dataclass(frozen=True)
class ProposalPoint:
    """One step, measured on its texts before the update. acceptance: share that satisfies the
    constraint. z: running estimate of Z. kl: estimate of KL(g || pi), noisy."""

    step: int
    acceptance: float
    z: float
    kl: float


def train_proposal(
    loaded: tuple[Any, Any],
    prompt: Prompt,
    constraint: Constraint,
    *,
    model: Any = None,
    warm_prompt: Prompt | None = None,
    warm_texts: int = 128,
    warm_steps: int = 30,
    steps: int = 100,
    samples: int = 128,
    max_new_tokens: int = 64,
    learning_rate: float = 1.41e-5,
    must_end: bool = True,
    rows: int = 16,
    max_trials: int = 10_000,
    seed: int = 0,
    observe: Callable[[ProposalPoint], None] | None = None,
) -> tuple[Any, list[ProposalPoint]]:
    """A proposal for `Guard(model=...)`, in evaluation mode, and the steps on the way to it.

    loaded: (model, tokenizer), which stay as they are; the tokenizer may be None for prompts that
    are ids. model: what is trained, in place: any causal model of the same vocabulary, also one
    that wraps the loaded model in a PEFT adapter. None trains a copy of the loaded model.
    warm_prompt: asks for the constraint; `warm_texts` accepted texts are fitted in `warm_steps`
    steps of maximum likelihood first. steps: gradient steps, of `samples` texts each. must_end:
    as in generate(). rows: texts that are differentiated together.

    Raises ConstraintError when the warm prompt gives no text that satisfies the constraint.
    """
    if min(steps, warm_steps) < 0 or min(samples, warm_texts, rows) < 1:
        raise InputError(
            f"steps ({steps}, {warm_steps}) must not be negative, and samples ({samples}), "
            f"warm_texts ({warm_texts}) and rows ({rows}) must be positive"
        )
    base, tokenizer = loaded
    policy = copy.deepcopy(base).requires_grad_(True) if model is None else model
    policy.eval()  # what is drawn and what is differentiated are one distribution: no dropout
    without_adapter = getattr(policy, "disable_adapter", nullcontext)
    ids = prompt_ids(tokenizer, prompt)
    ends, generator = sorted(constraint.eos), torch.Generator().manual_seed(seed)

    def request(model: Any, read: list[int]) -> Request:
        return Request(
            start(model, read),
            constraint,
            prompt_ids=tuple(ids),
            max_new_tokens=max_new_tokens,
            must_end=must_end,
            generator=generator,
        )

    def parts(texts: list[Text]) -> Iterator[tuple[slice, Tensor]]:
        """Log-probabilities of texts under the policy, a few at a time."""
        for first in range(0, len(texts), rows):
            part = slice(first, first + rows)
            yield part, policy_logprobs(policy, ids, *columns(texts[part]), ends)

    @torch.no_grad()
    def logprobs(model: Any, texts: list[Text]) -> Tensor:
        """float64 [n] on the CPU."""
        each = [torch.zeros(0, dtype=torch.float64)]
        for first in range(0, len(texts), rows):
            part = columns(texts[first : first + rows])
            each.append(policy_logprobs(model, ids, *part, ends).double().cpu())
        return torch.cat(each)

    warm: list[Text] = []
    points: list[ProposalPoint] = []
    partition = RunningTarget(window=1, prompts=1)

    def likelihood() -> Iterator[Tensor]:
        chosen = torch.randperm(len(warm), generator=generator)[:samples].tolist()
        for _, own in parts([warm[at] for at in chosen]):
            yield (-own / len(chosen)).sum()

    @torch.no_grad()
    def draw() -> tuple[list[Text], Tensor]:
        """Texts of the policy that satisfy the constraint, and their log a, log q, log Z [K, 3]."""
        valid = alive(run_smc(request(policy, ids), samples, Plain(), ess_threshold=0.0))
        log_q = logprobs(policy, valid)
        with without_adapter():
            log_target = logprobs(base, valid)
        log_ratio = torch.full((samples,), -math.inf, dtype=torch.float64)
        log_ratio[: len(valid)] = log_target - log_q
        log_z = partition.log_z([0] * samples, log_ratio)[: len(valid)]
        excess = log_target - log_q - log_z
        points.append(
            ProposalPoint(
                len(points) + 1,
                acceptance=len(valid) / samples,
                z=float(partition.log_total.exp() / partition.count),
                kl=float((excess.exp() * excess).sum() / samples),
            )
        )
        if observe:
            observe(points[-1])
        return valid, torch.stack([log_target, log_q, log_z], -1)

    def gradient() -> Iterator[Tensor]:
        valid, given = draw()
        for part, own in parts(valid):
            yield (dpg_loss(own, *given[part].to(own).unbind(-1)) / samples).sum()

    with evaluating(base):
        if warm_prompt is not None and warm_steps:
            with without_adapter():
                asked = request(base, prompt_ids(tokenizer, warm_prompt))
                warm = alive(reject(asked, warm_texts, max_trials=max_trials))
        first = warm_steps if warm else 0
        fit(
            lambda step, _: likelihood() if step < first else gradient(),
            policy,
            steps=first + steps,
            learning_rate=learning_rate,
            optimizer=torch.optim.Adam,
            seed=generator,
        )
    return policy.eval(), points


def policy_logprobs(
    model: Any,
    prompt: Sequence[int],
    texts: Sequence[Sequence[int]],
    ended: Sequence[bool],
    ends: Sequence[int],
) -> Tensor:
    """log pi(y) of texts after one prompt, [n] float32, with gradient; any of the end tokens ends
    a text."""
    device = next(model.parameters()).device
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), len(prompt) + longest, dtype=torch.long)
    real = torch.zeros(len(texts), longest + 1, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(prompt) + len(text)] = torch.tensor([*prompt, *text])
        real[row, : len(text)] = True
    attention = torch.cat([torch.ones(len(texts), len(prompt)).bool(), real[:, :-1]], 1)
    logits = model(
        input_ids=ids.to(device),
        attention_mask=attention.long().to(device),
        logits_to_keep=longest + 1,
    ).logits
    logprobs = logits.float().log_softmax(-1)  # [n, longest + 1, V]
    following = torch.nn.functional.pad(ids[:, len(prompt) :], (0, 1)).to(device)
    read = logprobs.gather(-1, following[..., None])[..., 0].masked_fill(~real.to(device), 0.0)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    end = logprobs[torch.arange(len(texts), device=device), lengths][:, list(ends)].logsumexp(-1)
    return read.sum(-1) + torch.where(torch.tensor(ended, device=device), end, 0.0)


def alive(samples: Samples) -> list[Text]:
    """The texts that weigh anything, each with whether it has ended."""
    rows = zip(samples.ids, samples.finished, samples.log_weights.tolist(), strict=True)
    return [(ids, ended) for ids, ended, weight in rows if weight > DEAD]


def columns(texts: Sequence[Text]) -> tuple[list[list[int]], list[bool]]:
    return [ids for ids, _ in texts], [ended for _, ended in texts]
