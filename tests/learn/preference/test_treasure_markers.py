"""Treasure markers: what is trained on what, and the likelihood that it is."""

from types import SimpleNamespace

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.data.precompute import joined_batch
from tokenry.learn.objective import objective
from tokenry.learn.preference.treasure_markers import TreasureMarkers
from tokenry.model.score import score


def annotated(tokenizer, objective, rows, seed=0):
    made = []
    for row in rows:
        ids = tokenizer(row["chosen"], add_special_tokens=False)["input_ids"]
        made.append(
            {**row, "prompt_ids": tokenizer(row["prompt"])["input_ids"]}
            | {"chosen_ids": [*ids, tokenizer.eos_token_id]}
        )
    return objective.precompute(made, SimpleNamespace(tokenizer=tokenizer, seed=seed))


def batch_of(rows):
    batch = joined_batch([r["prompt_ids"] for r in rows], [r["marked_ids"] for r in rows])
    learned = torch.zeros(batch.shape)
    learned[batch.target] = torch.tensor([x for r in rows for x in r["marked_learned"]])
    return batch.with_columns(learned=learned)


def loss_of(model, batch, objective):
    return objective(batch, score(model, batch))


ROWS = [
    {"prompt": "the cat", "chosen": " sat on the mat", "markers": {"domain": "pets"}},
    {"prompt": "a dog", "chosen": " sat there. and there", "markers": {"domain": "home"}},
]


def test_completion_and_its_markers_are_learned_and_prompt_markers_are_not(tiny_tokenizer):
    objective = TreasureMarkers(p_dataset=0.0, p_sample=0.0)
    for row in annotated(tiny_tokenizer, objective, ROWS):
        shown = [i for i, x in zip(row["marked_ids"], row["marked_learned"], strict=True) if not x]
        rest = [i for i, x in zip(row["marked_ids"], row["marked_learned"], strict=True) if x]
        block = f"[domain: {row['markers']['domain']} | length_bucket: concise]\n"
        assert tiny_tokenizer.decode(shown) == block
        assert tiny_tokenizer.decode(rest) == block + row["chosen"] + "</s>"
        assert row["marked_learned"] == sorted(row["marked_learned"])


def test_dropout_takes_markers_from_the_prompt_only(tiny_tokenizer):
    bare = annotated(tiny_tokenizer, TreasureMarkers(p_dataset=1.0), ROWS)
    assert all(min(row["marked_learned"]) == 1.0 for row in bare)
    assert all(tiny_tokenizer.decode(row["marked_ids"]).startswith("[domain") for row in bare)
    many = annotated(tiny_tokenizer, TreasureMarkers(), ROWS[:1] * 400)
    none = sum(min(row["marked_learned"]) == 1.0 for row in many) / 400
    assert none == pytest.approx(0.5 + 0.5 * 0.25, abs=0.08)


def test_without_markers_it_is_plain_likelihood_training(tiny_tokenizer, tiny_llama_text):
    objective = TreasureMarkers(computed=(), per_token=False)
    rows = annotated(tiny_tokenizer, objective, [{**row, "markers": None} for row in ROWS])
    assert [row["marked_ids"] for row in rows] == [row["chosen_ids"] for row in rows]
    batch = batch_of(rows)
    plain = -score(tiny_llama_text, batch).need("logprob").sum(-1).mean()
    torch.testing.assert_close(loss_of(tiny_llama_text, batch, objective).loss, plain)


def test_the_chain_rule_splits_markers_and_completion(tiny_tokenizer, tiny_llama_text):
    objective = TreasureMarkers(p_dataset=1.0, per_token=False)
    rows = annotated(tiny_tokenizer, objective, ROWS[:1])
    whole = loss_of(tiny_llama_text, batch_of(rows), objective).loss
    prompt, marked = rows[0]["prompt_ids"], rows[0]["marked_ids"]
    answer = rows[0]["chosen_ids"]
    block = marked[: -len(answer)]
    assert block
    both = 0.0
    for before, after in ((prompt, block), ([*prompt, *block], answer)):
        both -= score(tiny_llama_text, joined_batch([before], [after])).need("logprob").sum()
    torch.testing.assert_close(whole, both, rtol=1e-5, atol=1e-4)


def test_only_learned_tokens_count_and_have_gradients():
    batch = TokenBatch.from_ids([[0, 1, 2, 3], [0, 1, 2]])
    batch = batch.with_columns(learned=torch.tensor([[9.0, 0, 1, 1], [0, 1, 1, 9.0]]))
    logprob = torch.tensor([[0.0, -100, -1, -2], [0, -3, -5, torch.nan]], requires_grad=True)
    result = TreasureMarkers()(batch, Scores(batch.ids, batch.target, logprob=logprob))
    result.loss.backward()
    assert result.metrics["loss"].tolist() == [1.5, 4.0]
    assert logprob.grad.tolist() == [[0, 0, -0.25, -0.25], [0, -0.25, -0.25, 0]]
    total = TreasureMarkers(per_token=False)
    losses = total(batch, Scores(batch.ids, batch.target, logprob=logprob)).metrics["loss"]
    assert losses.tolist() == [3.0, 8.0]


def test_given_markers_are_stronger_than_computed_ones(tiny_tokenizer):
    row = {**ROWS[0], "markers": {"length_bucket": "long", "lang": None}}
    found = annotated(tiny_tokenizer, TreasureMarkers(computed=("length_bucket",)), [row])
    assert found[0]["markers"] == {"length_bucket": "long"}
    counted = annotated(tiny_tokenizer, TreasureMarkers(computed=("length_tokens",)), [row])
    assert counted[0]["markers"]["length_tokens"] == len(counted[0]["chosen_ids"]) - 1


def test_unknown_computed_marker_is_an_error():
    assert objective["treasure-markers"] is TreasureMarkers
    with pytest.raises(InputError, match="length_bucket"):
        TreasureMarkers(computed=("mood",))
