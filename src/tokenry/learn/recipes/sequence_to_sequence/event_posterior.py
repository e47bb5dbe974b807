"""Event posterior regularisation: annotated event triggers as soft constraints on answers.

The posterior q(y) ∝ p(y | x) exp(-u φ(x, y)) is to avoid events that do not answer the question.

Generative: weighted unlikelihood of what greedy decoding would emit. With A the trigger tokens of
answer events and Ā those of others,

    weight[v] ∝ 1,  times w_answer for each time v is in A, times w_nonanswer for each time in Ā
    L = - Σ_{n,t} weight[n, v] log(1 - p[n, t, v])   at   v = argmax p[n, t]

added as CE + 0.1 L / N for N samples; no gradient flows through the choice of v. (With
`selective=False` all v are summed over.)

Extractive: a head on encoder states H [B, P, d] tags tokens as 0, no answer, or 1, answer. Events e
and the question give each sentence s a factor u for either class k, which multiplies the logits z:

    g^k = tanh(w_k · MHA_k(H, H_question)),   m_e = w · H_e
    u^k_s = Σ_{e in s} m_e g^k_e / (1 + |E_s|),    z'[p, k] = z[p, k] exp(u^k_{s(p)})
    auxiliary = 0.1 · mean_e (m_e ∓ 1)² + 0.1 · mean_s [(u^0_s - y_s)² + (u^1_s + y_s)²]

m_e is taught to be +1 for answer events and -1 for others, y_s likewise for the sentences with and
without one. Tokens of no sentence and sentences without events keep z' = z.

Source: Event Knowledge Incorporation with Posterior Regularization for Event-Centric Question
Answering (arXiv 2305.04522). The released code loses the gradient of its auxiliary losses
(`detach_auxiliary` does the same), and teaches class 0 the sign +y (`positive_class`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError

SMALLEST = 1e-8  # stands for 1 - p where it is 0


def event_unlikelihood(
    logits: Tensor, mask: Tensor, token_weights: Tensor, *, selective: bool = True
) -> Tensor:
    """L, a scalar sum. logits [N, T, V]; mask: bool [N, T], the positions that count;
    token_weights [N, V]."""
    N, T, V = logits.shape
    if mask.shape != (N, T) or token_weights.shape != (N, V):
        raise ShapeError(
            f"logits [{N}, {T}, {V}] need a mask [{N}, {T}] and weights [{N}, {V}], not "
            f"{list(mask.shape)} and {list(token_weights.shape)}"
        )
    logprob = logits.float().log_softmax(-1)
    weight = token_weights.float()[:, None].expand_as(logprob)
    if selective:
        emitted = logprob.detach().argmax(-1, keepdim=True)
        logprob, weight = logprob.gather(-1, emitted), weight.gather(-1, emitted)
    penalty = -(weight * (-torch.expm1(logprob)).clamp_min(SMALLEST).log()).sum(-1)
    return torch.where(mask.bool(), penalty, 0.0).sum()


def event_token_weights(
    vocab_size: int,
    answer_ids: Sequence[int],
    nonanswer_ids: Sequence[int],
    *,
    w_answer: float = 0.5,
    w_nonanswer: float = 1.5,
) -> Tensor:
    """float32 [V]: weights of the vocabulary for one sample; they add up to 1 for distinct ids.

    answer_ids, nonanswer_ids: the first token of each trigger; one given twice counts twice.
    """
    ids = torch.tensor([*answer_ids, *nonanswer_ids], dtype=torch.long)
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise InputError(f"trigger ids must be in 0..{vocab_size - 1}, not {ids.tolist()}")
    in_range("w_answer", w_answer, "(0, inf)")
    in_range("w_nonanswer", w_nonanswer, "(0, inf)")
    factors = [w_answer] * len(answer_ids) + [w_nonanswer] * len(nonanswer_ids)
    total = vocab_size + sum(factor - 1 for factor in factors)
    if total <= 0:
        raise InputError(
            f"w_answer {w_answer} and w_nonanswer {w_nonanswer} must leave weight to the "
            f"{vocab_size} tokens"
        )
    logs = torch.zeros(vocab_size).index_add(0, ids, torch.tensor(factors).log())
    return logs.exp() / total


@dataclass(frozen=True)
class EventLikelihood:
    """Cross-entropy of the target tokens (their mean) + weight · event unlikelihood / N.

    weight: in [0, inf); default 0.1, the paper's. selective: penalise only the most probable token.
    """

    weight: float = 0.1
    selective: bool = True

    def __post_init__(self) -> None:
        within(self, "[0, inf)", "weight")

    def __call__(
        self, logits: Tensor, target: Tensor, mask: Tensor, token_weights: Tensor
    ) -> Tensor:
        """logits [N, T, V], target ids [N, T], mask bool [N, T], token_weights [N, V]."""
        mask = mask.bool()
        likelihood = F.cross_entropy(logits[mask].float(), target[mask])
        penalty = event_unlikelihood(logits, mask, token_weights, selective=self.selective)
        return likelihood + self.weight * penalty / len(logits)


class EventPosteriorHead(nn.Module):
    """The extractive head: token logits, reweighed sentence by sentence by its events.

    hidden_size: d. inner: width of the tagger. dropout: before it. auxiliary_weight: of either
    auxiliary loss. positive_class: the class whose factor is taught +1 in sentences with an answer
    (the release: 0). detach_auxiliary: let the auxiliary loss carry no gradient, as the release.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        inner: int = 16,
        dropout: float = 0.1,
        auxiliary_weight: float = 0.1,
        positive_class: int = 0,
        detach_auxiliary: bool = False,
    ):
        super().__init__()
        if positive_class not in (0, 1):
            raise InputError(f"positive_class must be 0 or 1, not {positive_class}")
        self.tagger = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(hidden_size, inner), nn.Tanh(), nn.Linear(inner, 2)
        )
        self.readers = nn.ModuleList(
            nn.MultiheadAttention(hidden_size, 1, batch_first=True) for _ in range(2)
        )
        self.relevance = nn.ModuleList(nn.Linear(hidden_size, 1) for _ in range(2))
        self.event_score = nn.Linear(hidden_size, 1)
        self.auxiliary_weight = auxiliary_weight
        self.detach_auxiliary = detach_auxiliary
        self.positive_class = positive_class

    def forward(
        self,
        hidden: Tensor,
        question: Tensor,
        sentence_ids: Tensor,
        events: Tensor,
        answers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, P, 2] and the auxiliary loss, 0 without `answers`.

        hidden [B, P, d]. question: bool [B, P], the question's tokens, at least one in each row.
        sentence_ids [B, P]: the number of each token's sentence, negative for none. events: bool
        [B, P], the first tokens of triggers, those in the question left out. answers: bool [B, P],
        of the events, those that answer.
        """
        for name, given in (("question", question), ("sentence_ids", sentence_ids)):
            if given.shape != hidden.shape[:2]:
                raise ShapeError(
                    f"{name} must be {list(hidden.shape[:2])}, not {list(given.shape)}"
                )
        if not question.any(-1).all():
            raise InputError("every row needs at least one token of the question")
        events = events.bool() & (sentence_ids >= 0)
        score = self.event_score(hidden)  # [B, P, 1]
        factors = self.sentence_factors(hidden, question, sentence_ids, events, score)
        # Sentence -1, behind the last one, is that of the tokens that have none.
        place = torch.where(sentence_ids >= 0, sentence_ids, factors.shape[1] - 1)
        spread = factors.gather(1, place[..., None].expand(-1, -1, 2))
        logits = self.tagger(hidden) * spread.exp()
        if answers is None:
            return logits, logits.new_zeros(())
        auxiliary = self.auxiliary(score[..., 0], factors, sentence_ids, events, answers.bool())
        return logits, auxiliary.detach() if self.detach_auxiliary else auxiliary

    def sentence_factors(
        self, hidden: Tensor, question: Tensor, sentence_ids: Tensor, events: Tensor, score: Tensor
    ) -> Tensor:
        """u [B, sentences + 1, 2]; the last one is 0, for tokens of no sentence."""
        outside = ~question.bool()
        aware = [
            torch.tanh(weigh(read(hidden, hidden, hidden, outside, need_weights=False)[0]))
            for read, weigh in zip(self.readers, self.relevance, strict=True)
        ]
        evidence = score * torch.cat(aware, -1) * events[..., None]  # [B, P, 2]
        sentences = int(sentence_ids.max().clamp_min(-1)) + 2
        place = torch.where(events, sentence_ids, sentences - 1)
        empty = evidence.new_zeros(len(hidden), sentences, 2)
        total = empty.scatter_add(1, place[..., None].expand(-1, -1, 2), evidence)
        return total / (1 + counted(events, place, sentences))[..., None]

    def auxiliary(
        self, score: Tensor, factors: Tensor, sentence_ids: Tensor, events: Tensor, answers: Tensor
    ) -> Tensor:
        """The two regressions, each a mean, times their weight."""
        wanted = torch.where(answers, 1.0, -1.0)
        of_events = mean_where((score - wanted).square(), events)
        sentences = factors.shape[1]
        inside = sentence_ids >= 0
        place = torch.where(inside, sentence_ids, sentences - 1)
        real = counted(inside, place, sentences) > 0
        holds = counted(answers & events, place, sentences) > 0
        sign = torch.where(holds, 1.0, -1.0)
        label = torch.stack([sign, -sign] if self.positive_class == 0 else [-sign, sign], -1)
        of_sentences = mean_where((factors - label).square().sum(-1), real)
        return self.auxiliary_weight * (of_events + of_sentences)


def counted(marks: Tensor, place: Tensor, size: int) -> Tensor:
    """How many marks [B, P] there are at each of `size` places, [B, size]."""
    return torch.zeros(len(marks), size, device=marks.device).scatter_add(1, place, marks.float())


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values under the mask; 0 if there are none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)
