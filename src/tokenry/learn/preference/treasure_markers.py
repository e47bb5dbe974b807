"""Treasure markers: fine-tuning with metadata that the model learns to infer, or to be told.

    prompt      x + T(m_in)              m_in: a random part of the markers m, often none of them
    completion  T(m) + y                 all of them, always
    loss        -sum_t log pi(token_t of T(m) + y | before it)

x is the prompt, y the completion, m its markers (length, domain, task, quality ...) and T(m) their
rendering as text (`text.markers`). Left alone, the model writes T(m) itself before it answers;
given markers behind the prompt, it follows them. The prompt and its markers are not predicted.

Source: Treasure Hunt: Real-time Targeting of the Long Tail using Training-Time Markers
(arXiv 2506.14702), its sections on markers and dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenry.core.aggregate import per_sequence
from tokenry.core.batch import TokenBatch
from tokenry.core.checks import within
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import Loss, Objective, Unit, objective
from tokenry.text.markers import MarkerDropout, MarkerSchema, build_example, length_markers

COMPUTED = ("length_bucket", "length_tokens", "length_sentences")


@objective("treasure-markers", paper=43)
@dataclass(frozen=True)
class TreasureMarkers(Objective):
    """Likelihood of the chosen completions and their markers.

    A row's `markers` is a dict of category -> value; length markers are computed.

    p_dataset: probability that an example's prompt shows no marker, in [0, 1]; default 0.5.
    p_sample: otherwise, that a marker is not shown, in [0, 1]; default 0.5.
    computed: which of "length_bucket", "length_tokens", "length_sentences" to add to each row.
    per_token: the mean over a row's tokens, so that long completions do not outweigh; False: sum.
    """

    p_dataset: float = 0.5
    p_sample: float = 0.5
    computed: tuple[str, ...] = ("length_bucket",)
    per_token: bool = True

    needs: ClassVar[tuple[str, ...]] = ("policy.logprob", "token.learned")
    unit: ClassVar[Unit] = "row"
    completions: ClassVar[tuple[str, ...]] = ("marked",)
    required_completions: ClassVar[tuple[str, ...]] = ("chosen",)

    def __post_init__(self) -> None:
        within(self, "[0, 1]", "p_dataset", "p_sample")
        if unknown := set(self.computed) - set(COMPUTED):
            raise InputError(f"cannot compute {sorted(unknown)}; possible: {', '.join(COMPUTED)}")

    def schema(self, rows: list[dict[str, Any]]) -> MarkerSchema:
        """The schema of annotated rows: every category and value that occurs in them."""
        return MarkerSchema.of_data(row["markers"] for row in rows)

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Adds `markers` (completed) and the side "marked": T(m_in), T(m) and y behind x.

        `marked_learned` is 0 on T(m_in), which only conditions, and 1 on the rest.
        """
        encode, end = context.tokenizer, context.tokenizer.eos_token_id
        rows = [dict(row) for row in rows]
        for row in rows:
            tokens = len(row["chosen_ids"]) - (row["chosen_ids"][-1:] == [end])
            own = length_markers(row["chosen"], tokens)
            given = {k: v for k, v in (row.get("markers") or {}).items() if v is not None}
            row["markers"] = {name: own[name] for name in self.computed} | given
        schema = self.schema(rows)
        dropout = MarkerDropout(self.p_dataset, self.p_sample, context.seed)
        for number, row in enumerate(rows):
            blocks = (dropout(row["markers"], number), row["markers"])
            shown, block = (
                encode(schema.render(markers), add_special_tokens=False)["input_ids"]
                for markers in blocks
            )
            example = build_example([], shown, block, row["chosen_ids"])
            row["marked_ids"] = example.ids
            if "chosen_target" in row:
                before = len(example.ids) - len(row["chosen_ids"])
                row["marked_target"] = [True] * before + row["chosen_target"]
            row["marked_learned"] = [float(learned) for learned in example.target]
        return rows

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None = None, **_: object
    ) -> Loss:
        learned = batch.target & (batch.column("learned") > 0)
        losses = -per_sequence(policy.need("logprob"), learned, "mean" if self.per_token else "sum")
        return Loss(losses.mean(), {"loss": losses.detach(), "tokens": learned.sum(-1).float()})
