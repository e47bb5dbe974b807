"""Key clusters and in-context navigation: what a ranking of next tokens hides behind its top.

A next-token distribution is softmax(q . k_v) with the query q (last hidden state) and the keys k_v
(rows of the output layer). Tokens whose keys lie near the top token's key are ranked high for that
alone. Two instruments:

- `rank_cluster_report`: cluster the keys; of the middle ranks, are those in the clusters of the
  first `head` ranks right less often than those in other clusters?
- `InContextNavigator`: list the answers found so far in the context, which turns the query away
  from their keys, and take the best first tokens that were not tried yet. Each answer is completed
  from the prompt without the list, so that the list only chooses where to look.

Source: Correlation and Navigation in the Vocabulary Key Representation Space of Language Models
(arXiv 2410.02284).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.core.boundaries import prompt_ids
from tokenry.core.checks import in_range, one_of, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.core.extras import require_extra
from tokenry.decode.generate import ends as end_tokens
from tokenry.model.decoding import DecodingState
from tokenry.text.vocabulary import token_bytes


@dataclass(frozen=True)
class Answer:
    """An answer that was found: its text, the forced first token, and in which round (from 0)."""

    text: str
    first_token: int
    round: int


@dataclass(frozen=True)
class InContextNavigator:
    """Explores the answers to an open question.

    Args:
        instruction: the question.
        template: the prompt, with the fields {instruction}, {list} (the answers so far, one `item`
            each) and {number}; it ends where an answer begins.
        item: a line of that list, with {number} and {answer}.
        stop: the text that ends an answer.
        per_round: first tokens tried a round, whole, in [1, inf).
        complete_from: "initial", the prompt with an empty list, or "current".
        max_new_tokens: of an answer, whole, in [1, inf).
    """

    model: Any
    tokenizer: Any
    instruction: str
    template: str = '{instruction}\n\nAnswer:\n{list}{number}. "'
    item: str = '{number}. "{answer}"\n'
    stop: str = '"'
    per_round: int = 10
    complete_from: str = "initial"
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        one_of("InContextNavigator.complete_from", self.complete_from, ("initial", "current"))
        within(self, "[1, inf)", "per_round", "max_new_tokens", integer=True)

    def __call__(self, rounds: int = 10) -> list[Answer]:
        """rounds * per_round answers in the order in which they were found, repeats included.

        One round is the plain ranking: the answers of its `per_round` best first tokens.
        """
        answers: list[Answer] = []
        tried = torch.tensor([not piece for piece in token_bytes(self.tokenizer)])  # no text: none
        initial = self.state([])
        for number in range(rounds):
            current = self.state([answer.text for answer in answers]) if answers else initial
            first = best_unseen(current.logits[0].cpu(), tried, self.per_round)
            tried[first] = True
            source = initial if self.complete_from == "initial" else current
            texts = self.complete(source, first)
            answers += [
                Answer(text, token, number)
                for text, token in zip(texts, first.tolist(), strict=True)
            ]
        return answers

    def prompt(self, answers: Sequence[str]) -> str:
        """The prompt with these answers listed, each once."""
        listed = list(dict.fromkeys(answers))
        items = [
            self.item.format(number=number, answer=answer)
            for number, answer in enumerate(listed, 1)
        ]
        return self.template.format(
            instruction=self.instruction, list="".join(items), number=len(listed) + 1
        )

    def state(self, answers: Sequence[str]) -> DecodingState:
        """The model where the next answer begins."""
        ids = torch.tensor([prompt_ids(self.tokenizer, self.prompt(answers))])
        return DecodingState.start(self.model, ids.to(next(self.model.parameters()).device))

    def complete(self, state: DecodingState, first_tokens: Tensor) -> list[str]:
        """The answers that begin with these tokens, continued greedily until `stop` or the end."""
        state = state.copy()
        state.fork(len(first_tokens))
        token = first_tokens.to(state.attention.device)
        stops = set(end_tokens(self.model, self.tokenizer))
        rows = [[int(id)] for id in first_tokens]
        alive = list(range(len(rows)))
        for _ in range(self.max_new_tokens - 1):
            open_rows = [
                number
                for number, row in enumerate(alive)
                if rows[row][-1] not in stops and self.stop not in self.tokenizer.decode(rows[row])
            ]
            if not open_rows:
                break
            if len(open_rows) < len(alive):
                keep = torch.tensor(open_rows, device=token.device)
                state.select(keep)
                alive, token = [alive[number] for number in open_rows], token[keep]
            token = state.append(token).argmax(-1)
            for row, id in zip(alive, token.tolist(), strict=True):
                rows[row].append(id)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.split(self.stop)[0].strip() for text in texts]


def best_unseen(logits: Tensor, seen: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens outside `seen`; logits [V], seen [n <= V] bool -> [count].

    Ids behind the end of `seen` (padding of the output layer) are never taken.
    """
    open_logits = logits[: len(seen)].masked_fill(seen[: len(logits)], -torch.inf)
    if count > int((open_logits > -torch.inf).sum()):
        raise InputError(f"{count} first tokens are wanted, fewer are left: use fewer rounds")
    return open_logits.topk(count).indices


def cluster_keys(
    keys: Tensor, n_clusters: int = 1024, *, iterations: int = 100, seed: int = 0
) -> Tensor:
    """k-means on the keys [V, D], Euclidean and as they are: the cluster of each token, [V].

    Above 10,000 keys in mini-batches. Needs scikit-learn.
    """
    if keys.ndim != 2 or not 1 <= n_clusters <= len(keys):
        raise InputError(f"cannot make {n_clusters} clusters of keys {list(keys.shape)}")
    require_extra("clustering", "sklearn")
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # scikit-learn needs it too

    options: Any = {
        "n_clusters": n_clusters, "max_iter": iterations, "random_state": seed, "n_init": 1
    }  # fmt: skip
    if len(keys) <= 10_000:
        method = KMeans(**options)
    else:
        method = MiniBatchKMeans(batch_size=4096, **options)
    with threadpool_limits(torch.get_num_threads()):
        labels = method.fit_predict(keys.detach().float().cpu().numpy())
    return torch.from_numpy(labels).long()


@dataclass(frozen=True)
class RankClusters:
    """The middle ranks, split by whether they share a cluster with the head.

    The head itself belongs to neither side.

    Attributes:
        correct: [depth] bool by rank.
        inside: [depth] bool, in a cluster of the first `head` ranks.
    """

    correct: Tensor
    inside: Tensor
    head: int

    def ranks(self, inside: bool) -> Tensor:
        """The middle ranks, from 1, of one side."""
        ranks = torch.arange(1, len(self.inside) + 1)
        return ranks[(self.inside == inside) & (ranks > self.head)]

    def side(self, inside: bool) -> Tensor:
        """Which of them are right, bool."""
        return self.correct[self.ranks(inside) - 1]

    def accuracy(self, inside: bool) -> float:
        """Share of right answers on one side; NaN when nothing is there."""
        return float(self.side(inside).double().mean())

    def mean_rank(self, inside: bool) -> float:
        return float(self.ranks(inside).double().mean())

    @property
    def share_inside(self) -> float:
        """Share of the middle ranks that are in the head's clusters."""
        return len(self.ranks(True)) / max(len(self.inside) - self.head, 1)


def rank_cluster_report(
    logits: Tensor,
    cluster_ids: Tensor,
    correct: Callable[[list[int]], Sequence[bool]],
    *,
    head: int = 10,
    depth: int = 100,
) -> RankClusters:
    """Judge the `depth` best first tokens and split those behind the `head` by cluster.

    Args:
        logits: [V]; a cluster of -1 takes the token out of the ranking.
        cluster_ids: [V]; a cluster of -1 takes the token out of the ranking.
        correct: whether the answers that begin with these tokens are right.
    """
    if logits.shape != cluster_ids.shape or logits.ndim != 1:
        raise ShapeError(
            f"logits and cluster_ids must be [V], got {list(logits.shape)} and "
            f"{list(cluster_ids.shape)}"
        )
    if not 1 <= head < depth:
        raise InputError(f"need 1 <= head < depth, got head={head} and depth={depth}")
    ranked = best_unseen(logits.cpu(), cluster_ids.cpu() < 0, depth)
    clusters = cluster_ids.cpu()[ranked]
    inside = torch.isin(clusters, clusters[:head])
    judged = torch.tensor([bool(value) for value in correct(ranked.tolist())])
    if len(judged) != depth:
        raise ShapeError(f"correct judged {len(judged)} of {depth} tokens")
    return RankClusters(judged, inside, head)


def precision_at(correct: Sequence[bool | int], k: int) -> float:
    """Share of the first k answers that are right; missing answers are wrong."""
    in_range("k", k, "[1, inf)", integer=True)
    return sum(map(bool, correct[:k])) / k


def mean_prefix_precision(correct: Sequence[bool | int], k: int) -> float:
    """Mean over i = 1..k of the precision of the first i answers."""
    return sum(precision_at(correct, i) for i in range(1, k + 1)) / k if k else 0.0
