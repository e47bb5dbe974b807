"""Rows and tokens that a model cannot take are named before any work."""

import copy

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.run import train

PAIRS = [
    {"prompt": f"the {noun}", "chosen": " sat there", "rejected": " gathered" * (1 + i % 2)}
    for i, noun in enumerate(("cat", "dog", "mat", "theory"))
]
LONG = {"prompt": "the cat", "chosen": " sat there" * 40, "rejected": " gathered"}
QUIET = {"disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3, "max_steps": 1}


@pytest.fixture
def gpt2(tiny_tokenizer):
    """A model with 32 learned positions and no embedding for ids beyond the tokenizer's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2
    )
    return GPT2LMHeadModel(config).eval()


def test_rows_beyond_the_positions_are_named_in_training_and_evaluation(
    gpt2, tiny_tokenizer, tmp_path
):
    loaded = (gpt2, tiny_tokenizer)
    with pytest.raises(InputError, match=r"row 4: prompt \d+ and completion \d+ tokens .* 32 pos"):
        train("dpo", [*PAIRS, LONG], loaded, tmp_path / "out", **QUIET)
    with pytest.raises(InputError, match="row 1: "):
        train("dpo", PAIRS, loaded, tmp_path / "out", eval_data=[PAIRS[0], LONG], **QUIET)
    assert not (tmp_path / "out").exists()
    run = train(
        "dpo", [*PAIRS, LONG], loaded, tmp_path / "out",
        eval_data=[*PAIRS, LONG], bad_rows="skip", **QUIET,
    )  # fmt: skip
    assert run.record["data"]["skipped"] == run.record["eval_data"]["skipped"] == 1
    cut = QUIET | {"max_length": 32, "truncate": "completion"}
    assert train("dpo", [LONG], (gpt2, tiny_tokenizer), tmp_path / "cut", **cut)


def test_prompts_for_rollouts_keep_to_positions_and_max_length(gpt2, tiny_tokenizer, tmp_path):
    rows = [{"prompt": "the cat sat there " * 4}, {"prompt": "the dog"}]
    size = len(tiny_tokenizer(rows[0]["prompt"])["input_ids"])
    options = QUIET | {"samples": 1, "rewards": [lambda p, c: 0.0]}
    loaded = (gpt2, tiny_tokenizer)
    with pytest.raises(InputError, match=f"row 0: prompt {size} and completion 20 tokens"):
        train("ppo", rows, loaded, tmp_path / "out", max_new_tokens=20, **options)
    short = options | {"max_new_tokens": 4, "max_length": 10}
    with pytest.raises(InputError, match=f'row 0: "prompt" has {size} tokens, and with 4 new'):
        train("ppo", rows, loaded, tmp_path / "out", **short)
    seen = []

    def record(prompt, completion):
        seen.append(prompt)
        return float(len(seen))

    short["rewards"] = [record]
    run = train("ppo", rows, loaded, tmp_path / "out", truncate="prompt", **short)
    assert run.record["state"] == "finished"
    assert max(len(tiny_tokenizer(prompt)["input_ids"]) for prompt in seen) <= 6


def test_tokens_beyond_the_embedding_are_named(tiny_llama_text, tiny_tokenizer, tmp_path):
    added = copy.deepcopy(tiny_tokenizer)
    added.add_tokens(["<table>"])
    rows = [*PAIRS, {"prompt": "the <table>", "chosen": " sat", "rejected": " gathered"}]
    with pytest.raises(InputError, match=rf'row 4: "prompt" has the token {len(tiny_tokenizer)}'):
        train("dpo", rows, (copy.deepcopy(tiny_llama_text), added), tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


def test_an_added_padding_token_without_an_embedding_is_named(
    tiny_llama_text, tiny_tokenizer, tmp_path
):
    added = copy.deepcopy(tiny_tokenizer)
    added.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(InputError, match=rf"padding token has the id {len(tiny_tokenizer)}"):
        train("dpo", PAIRS, (copy.deepcopy(tiny_llama_text), added), tmp_path / "out", **QUIET)
