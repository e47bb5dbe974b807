import copy
import json
import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.compute import compute_loss
from tokenry.learn.data import PreferenceCollator, as_dataset, batch_of, completion_rows, read_rows
from tokenry.learn.pretraining.sft import SFT
from tokenry.learn.run import train

ROWS = [
    {"prompt": "the cat", "completion": " sat there"},
    {"prompt": "there is a", "completion": " theory that gathered"},
    {"prompt": "def", "completion": " add(a, b)"},
]
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
}


def batch_from(rows, tokenizer):
    split = completion_rows(read_rows(rows, tokenizer).rows)
    collate = PreferenceCollator.of(tokenizer, ("completion",))
    return batch_of(collate(list(as_dataset(split, ("completion",)))))


def test_the_loss_and_its_gradient_are_those_of_transformers(tiny_llama_text, tiny_tokenizer):
    ours, theirs = (copy.deepcopy(tiny_llama_text).train() for _ in range(2))
    batch = batch_from(ROWS, tiny_tokenizer)
    loss = compute_loss(SFT(), batch, ours).loss
    labels = batch.ids.masked_fill(~batch.target, -100)
    expected = theirs(input_ids=batch.ids, attention_mask=batch.attention, labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for mine, peer in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, peer.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["text", "completion"])
def test_trains_on_texts_and_on_completions(form, tiny_llama_text, tiny_tokenizer, tmp_path):
    rows = ROWS if form == "completion" else [{"text": r["prompt"] + r["completion"]} for r in ROWS]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    loaded = (copy.deepcopy(tiny_llama_text), tiny_tokenizer)
    run = train("sft", file, loaded, tmp_path / "out", eval_data=file, **QUIET)
    assert run.record["objective"] == "sft"
    batch = batch_from(rows, tiny_tokenizer)
    with torch.no_grad():
        after = compute_loss(SFT(), batch, run.model.eval()).loss
        before = compute_loss(SFT(), batch, tiny_llama_text).loss
    assert run.record["evaluation"]["eval_loss"] == pytest.approx(after.item(), rel=1e-4)
    assert after < before
    assert math.isfinite(after)


def test_conversations_train_on_what_the_assistant_says(tiny_llama_text, tmp_path):
    from chat_templates import KINDS, build_tokenizer

    tokenizer = build_tokenizer("bytes", KINDS[0].template)
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    ] * 2
    batch = batch_from(rows, tokenizer)
    assert "yes" in tokenizer.decode(batch.ids[0][batch.target[0]])
    assert "hi" not in tokenizer.decode(batch.ids[0][batch.target[0]])


def test_preference_pairs_are_refused_with_what_is_wanted(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    pairs = [{"prompt": "a", "chosen": " b", "rejected": " c"}]
    with pytest.raises(InputError, match="preference data; wanted: text or messages"):
        train("sft", pairs, (tiny_llama_text, tiny_tokenizer), tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_rows_of_two_kinds_are_told_apart_by_the_setting(tiny_llama_text, tiny_tokenizer, tmp_path):
    rows = [{"text": "the cat sat", "prompt": "the", "completion": " dog"}]
    loaded = (copy.deepcopy(tiny_llama_text), tiny_tokenizer)
    with pytest.raises(InputError, match="data_format"):
        train("sft", rows, loaded, tmp_path / "out", **QUIET)
    run = train("sft", rows, loaded, tmp_path / "out", data_format="completion", **QUIET)
    assert run.record["reading"]["data_format"] == "completion"
