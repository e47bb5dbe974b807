"""Exploring the answers to open questions: one ranking of first tokens, and navigation in context.

The best first tokens of a bare prompt are completed and judged, and split by whether they share a
cluster of keys with the head; and as many first tokens are tried in one round, or in several with
the answers so far listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tokenry.measure.probes.navigation import (
    InContextNavigator,
    RankClusters,
    cluster_keys,
    rank_cluster_report,
)
from tokenry.tasks.suites.closed_lists import answers_to, right_answers
from tokenry.text.vocabulary import token_bytes


@dataclass(frozen=True)
class Exploration:
    """How questions of `tasks.suites.closed_lists` are explored.

    vocabulary, clusters: so many of the first tokens that are letters without a space, which can
    begin an answer behind a quotation mark, in so many clusters. depth, head: ranks that are
    judged, and those whose clusters count. rounds, per_round: of navigation. longest: tokens of an
    answer.
    """

    vocabulary: int = 8192
    clusters: int = 256
    depth: int = 40
    head: int = 10
    rounds: int = 4
    per_round: int = 8
    longest: int = 5

    def clustered(self, model: Any, tokenizer: Any, seed: int) -> Tensor:
        """[V]: the clusters of the keys of words, -1 for the other tokens."""
        keys, pieces = model.get_output_embeddings().weight, token_bytes(tokenizer)
        words = [id for id, piece in enumerate(pieces) if piece.isalpha() and piece.isascii()]
        clusters, chosen = torch.full((len(keys),), -1), torch.tensor(words[: self.vocabulary])
        clusters[chosen] = cluster_keys(keys[chosen], self.clusters, iterations=20, seed=seed)
        return clusters

    def explored(
        self, model: Any, tokenizer: Any, question: str, clusterings: Sequence[Tensor]
    ) -> tuple[list[RankClusters], list[str | None], list[str | None]]:
        """A report for each clustering; the right answers of one ranking, and of navigation (None
        in the place of a wrong one)."""
        right = answers_to(question)
        options: Any = {"per_round": self.per_round, "max_new_tokens": self.longest}
        navigator = InContextNavigator(model, tokenizer, question, **options)
        start = navigator.state([])

        @cache  # all clusterings rank the same tokens
        def judged(*ids: int) -> list[bool]:
            texts = navigator.complete(start, torch.tensor(ids))
            return [answer is not None for answer in right_answers(texts, right)]

        shape: Any = {"head": self.head, "depth": self.depth}
        reports = [
            rank_cluster_report(start.logits[0], clusters, lambda ids: judged(*ids), **shape)
            for clusters in clusterings
        ]
        wide = replace(navigator, per_round=self.rounds * self.per_round)
        plain, navigated = (
            right_answers([answer.text for answer in answers], right)
            for answers in (wide(1), navigator(self.rounds))
        )
        return reports, plain, navigated
