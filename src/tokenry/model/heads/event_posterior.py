"""A head that tags answers, reweighed sentence by sentence by the events in them.

On encoder states H [B, P, d] it tags tokens as 0, no answer, or 1, answer. Events e
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

import torch
from torch import Tensor, nn

from tokenry.core.checks import one_of
from tokenry.core.errors import InputError, ShapeError


class EventPosteriorHead(nn.Module):
    """The extractive head: token logits, reweighed sentence by sentence by its events.

    Args:
        hidden_size: d.
        inner: width of the tagger.
        dropout: before it.
        auxiliary_weight: of either auxiliary loss.
        positive_class: the class whose factor is taught +1 in sentences with an answer (the
            release: 0).
        detach_auxiliary: let the auxiliary loss carry no gradient, as the release.
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
        one_of("positive_class", positive_class, (0, 1))
        self.tagger = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(hidden_size, inner), nn.Tanh(), nn.Linear(inner, 2)
        )
        self.question_attention = nn.ModuleList(
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

        hidden [B, P, d].

        Args:
            question: bool [B, P], the question's tokens, at least one in each row.
            sentence_ids: [B, P], the number of each token's sentence, negative for none.
            events: bool [B, P], the first tokens of triggers, those in the question left out.
            answers: bool [B, P], of the events, those that answer.
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
        sentence = torch.where(sentence_ids >= 0, sentence_ids, factors.shape[1] - 1)
        spread = factors.gather(1, sentence[..., None].expand(-1, -1, 2))
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
            torch.tanh(weigh(attend(hidden, hidden, hidden, outside, need_weights=False)[0]))
            for attend, weigh in zip(self.question_attention, self.relevance, strict=True)
        ]
        evidence = score * torch.cat(aware, -1) * events[..., None]  # [B, P, 2]
        sentences = int(sentence_ids.max().clamp_min(-1)) + 2
        sentence = torch.where(events, sentence_ids, sentences - 1)
        empty = evidence.new_zeros(len(hidden), sentences, 2)
        total = empty.scatter_add(1, sentence[..., None].expand(-1, -1, 2), evidence)
        return total / (1 + counted(events, sentence, sentences))[..., None]

    def auxiliary(
        self, score: Tensor, factors: Tensor, sentence_ids: Tensor, events: Tensor, answers: Tensor
    ) -> Tensor:
        """The two regressions, each a mean, times their weight."""
        wanted = torch.where(answers, 1.0, -1.0)
        of_events = mean_where((score - wanted).square(), events)
        sentences = factors.shape[1]
        inside = sentence_ids >= 0
        sentence = torch.where(inside, sentence_ids, sentences - 1)
        real = counted(inside, sentence, sentences) > 0
        holds = counted(answers & events, sentence, sentences) > 0
        sign = torch.where(holds, 1.0, -1.0)
        label = torch.stack([sign, -sign] if self.positive_class == 0 else [-sign, sign], -1)
        of_sentences = mean_where((factors - label).square().sum(-1), real)
        return self.auxiliary_weight * (of_events + of_sentences)


def counted(marks: Tensor, sentence: Tensor, size: int) -> Tensor:
    """How many marks [B, P] there are in each of `size` sentences, [B, size]."""
    return torch.zeros(len(marks), size, device=marks.device).scatter_add(
        1, sentence, marks.float()
    )


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values under the mask; 0 if there are none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)
