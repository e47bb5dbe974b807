"""T-REG: DPO plus a term that holds its token rewards to the reference model's own judgement.

    r^_t  = sigmoid( log pi_ref(y_t|x_better, y_<t) - log pi_ref(y_t|x_worse, y_<t) ) - 1/2
    R(y)  = beta * sum_t log pi(y_t|s_t) / pi_ref(y_t|s_t)                  DPO's reward
    w     = sg sigmoid( R(y_l) - R(y_w) )
    L_reg(y) = - sum_t beta r^_t log pi(y_t|s_t)
    loss  = -log sigmoid( R(y_w) - R(y_l) )  +  alpha w [ L_reg(y_w) + L_reg(y_l) ]

y_w is the chosen and y_l the rejected completion of the prompt x; x_better and x_worse wrap x in a
request for a better and for a worse answer; pi is the policy, pi_ref the frozen reference, sg the
stop-gradient. w is DPO's own gradient coefficient, so that a token's gradient becomes
-beta w (1 + alpha r^_t) on the chosen and +beta w (1 - alpha r^_t) on the rejected completion:
DPO's uniform credit, modulated token by token, and fading with the pair.

Source: T-REG: Preference Optimization with Token-Level Reward Regularization (arXiv 2412.02685).
The stop-gradient on w and the wording of the two prompts are reconstructed. With host="simpo" the
reward is SimPO's, (beta / |y|) sum_t log pi with margin gamma, in both terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from tokenry.core.aggregate import full_precision
from tokenry.core.batch import TokenBatch
from tokenry.core.boundaries import prompt_ids
from tokenry.core.checks import within
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.scores import Scores
from tokenry.learn.data.fields import chat_of
from tokenry.learn.objective import PAIR, Loss, Objective, Unit, objective
from tokenry.learn.preference.pairs import halves
from tokenry.learn.preference.weighted import add_terms, preference_loss
from tokenry.learn.reference import FrozenModel

Host = Literal["dpo", "simpo"]

BETTER_TEMPLATE = (
    "{prompt}\n\nGive an improved answer: more helpful, more correct, more coherent and more "
    "concise than usual."
)
WORSE_TEMPLATE = (
    "{prompt}\n\nGive a worsened answer: less helpful, less correct, less coherent and less "
    "concise than usual."
)


def contrastive_prompt_reward(better_logprob: Tensor, worse_logprob: Tensor) -> Tensor:
    """r^_t in (-1/2, 1/2) from a token's log-probabilities under the two prompts."""
    difference = full_precision(better_logprob) - full_precision(worse_logprob)
    return torch.sigmoid(difference) - 0.5


@dataclass(frozen=True)
class TokenRewardTerm:
    """alpha w [ L_reg(y_w) + L_reg(y_l) ] of each pair, [B], from the column `self_reward`.

    beta: in (0, inf). alpha, gamma: in [0, inf). These and the others are those of `TReg`.
    """

    beta: float = 0.1
    alpha: float = 0.25
    host: Host = "dpo"
    gamma: float = 0.5
    better: str = BETTER_TEMPLATE
    worse: str = WORSE_TEMPLATE

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "beta")
        within(self, "[0, inf)", "alpha", "gamma")
        if self.host not in get_args(Host):
            raise UnknownNameError("host", self.host, get_args(Host))
        for name in ("better", "worse"):
            if "{prompt}" not in getattr(self, name):
                raise InputError(f'the template {name!r} must hold "{{prompt}}" where that belongs')

    @property
    def needs(self) -> tuple[str, ...]:
        frozen = ("reference.logprob",) if self.host == "dpo" else ()
        return ("policy.logprob", *frozen, "token.self_reward")

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `chosen_self_reward` and `rejected_self_reward` where the data have none."""
        judge = context.reference or FrozenModel(context.model)
        for side in PAIR:
            missing = [row for row in rows if row.get(f"{side}_self_reward") is None]
            answers = [row[f"{side}_ids"] for row in missing]
            better, worse = (
                context.logprobs(
                    judge, [request_ids(context.tokenizer, text, row) for row in missing], answers
                )
                for text in (self.better, self.worse)
            )
            for row, high, low in zip(missing, better, worse, strict=True):
                reward = contrastive_prompt_reward(torch.tensor(high), torch.tensor(low))
                row[f"{side}_self_reward"] = reward.tolist()
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Tensor:
        hosted = host_loss(batch, policy, reference, self)
        # The host's own gradient coefficient: 1 - exp(-loss) = sigmoid(R(y_l) - R(y_w)).
        coefficient = -torch.expm1(-hosted.metrics["loss"])
        logprob, reward = (
            torch.where(batch.target, full_precision(values), 0.0)
            for values in (policy.need("logprob"), batch.column("self_reward"))
        )
        agreement = (reward * logprob).sum(-1)
        if self.host == "simpo":
            agreement = agreement / batch.target.sum(-1).clamp_min(1)
        chosen, rejected = halves(agreement)
        return -self.alpha * self.beta * coefficient * (chosen + rejected)


@objective("t-reg", paper=32)
@dataclass(frozen=True)
class TReg(Objective):
    """Token-level reward Regularization. The token rewards are computed once, before training.

    beta: strength of the pull towards the reference, in (0, inf); default 0.1 (with SimPO, 2.5 is
        usual).
    alpha: weight of the regulariser, in [0, inf); the paper's values are 0.1, 0.25 and 0.5. 0 gives
        the host.
    host: "dpo" or "simpo", whose reward is averaged over tokens and has no reference.
    gamma: SimPO's margin, in units of its reward, in [0, inf); unused with DPO.
    better, worse: the two requests; "{prompt}" stands for the prompt.
    """

    beta: float = 0.1
    alpha: float = 0.25
    host: Host = "dpo"
    gamma: float = 0.5
    better: str = BETTER_TEMPLATE
    worse: str = WORSE_TEMPLATE

    unit: ClassVar[Unit] = "pair"
    detaches: ClassVar[str] = "the weight w of the regulariser"

    def __post_init__(self) -> None:
        _ = self.term  # which checks the parameters

    @property
    def term(self) -> TokenRewardTerm:
        """The regulariser, to be used with other objectives' parts too."""
        return TokenRewardTerm(
            self.beta, self.alpha, self.host, self.gamma, self.better, self.worse
        )

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.term.needs

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `chosen_self_reward` and `rejected_self_reward` where the data have none."""
        return self.term.precompute(rows, context)

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **_: object
    ) -> Loss:
        hosted = host_loss(batch, policy, reference, self.term)
        return add_terms(hosted, regularizer=self.term(batch, policy, reference))


def host_loss(
    batch: TokenBatch, policy: Scores, reference: Scores | None, term: TokenRewardTerm
) -> Loss:
    """DPO's loss, or SimPO's: a mean instead of a sum, no reference, and a margin."""
    if term.host == "dpo":
        return preference_loss(batch, policy, reference, beta=term.beta)
    nothing = replace(policy, logprob=torch.zeros_like(policy.need("logprob")))
    chosen = torch.arange(len(batch.ids), device=batch.ids.device) < len(batch.ids) // 2
    return preference_loss(
        batch,
        policy,
        nothing,
        beta=term.beta,
        margin=torch.where(chosen, -term.gamma / term.beta, 0.0),
        reduction="mean",
    )


def request_ids(tokenizer: Any, template: str, row: dict[str, Any]) -> list[int]:
    """The ids of a request around a row's prompt, up to where the answer begins.

    In a conversation (`prompt_messages`) it stands around the last thing that the user said, and
    all else stays. A prompt that is a text becomes a user's message where there is a chat template.
    Answers keep their own ids behind it. Raises InputError for a prompt that nobody says, and for
    a text that a chat template has written already, whose roles cannot be told any more.
    """
    conversation = row.get("prompt_messages")
    templated = conversation is not None or getattr(tokenizer, "chat_template", None) is not None
    if conversation is None:
        ids, special = row["prompt_ids"], set(getattr(tokenizer, "all_special_ids", ()))
        if templated and special & set(ids[1:]):
            raise InputError(
                f"{row.get('place', 'a row')}: the prompt is a text with special tokens in it, as "
                "a chat template writes them; T-REG asks for better and worse answers in the "
                'user\'s words: give "prompt" as messages'
            )
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        if not templated:
            return prompt_ids(tokenizer, f"{template.replace('{prompt}', text)}\n\nAnswer:")
        conversation = [{"role": "user", "content": text}]
    users = [n for n, message in enumerate(conversation) if message["role"] == "user"]
    if not users:
        raise InputError(
            f"{row.get('place', 'a row')}: no user speaks in the prompt, so there is nothing to "
            "ask a better answer for"
        )
    messages = [dict(message) for message in conversation]
    asked = messages[users[-1]]
    asked["content"] = template.replace("{prompt}", asked.get("content", ""))
    return prompt_ids(tokenizer, chat_of(row, tokenizer).prompt(messages), templated=True)
