"""tokenry audit on a tiny model, in a folder as a user's would be."""

import json

import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.measure.audit.report import audit, forcing_prefix, word_tokens


def test_help_teaches(run):
    code, out, _ = run("audit", "--help")
    assert code == 0
    for word in ("Example", "tokenry audit", "--seed", "--tokens", "--json", "fingerprint"):
        assert word in out


def test_the_three_probes_report_with_their_meaning(run, model):
    code, out, _ = run("audit", model, "--tokens", 40, "--threshold", 0.5)
    assert code == 0
    for word in ("hidden strings", "40 of", "length inflation", "clean", "reachable tokens", "k=3"):
        assert word in out
    assert out.count(" s\n") >= 3  # the time that each took


def test_json_holds_what_was_measured(run, model):
    code, out, _ = run("audit", model, "-n", 30, "--threshold", 0.3, "--json", "--seed", 2)
    found = json.loads(out)
    assert code == 0
    assert (found["model"], found["seed"]) == (model, 2)
    hidden = found["hidden"]
    assert hidden["forced"] == 30
    assert len(hidden["candidates"]) == min(hidden["above"], 12)
    for row in hidden["candidates"]:
        assert row["score"] > 0.3
    for row in hidden["control"]:
        assert row["score"] <= 0.3
    length = found["length"]
    assert len(length["clean"]) == len(length["worst"]) == len(length["prompts"])
    assert all(w >= c for w, c in zip(length["worst"], length["clean"], strict=True))
    for row in found["reach"]["states"]:
        assert row["reached"][0] == 1
        assert row["reached"] == sorted(row["reached"])
        assert row["own_likeliest"] == sorted(row["own_likeliest"])
        assert len(row["outputs"]) <= row["reached"][-1]
    for part in ("hidden", "length", "reach"):
        assert found[part]["meaning"]
        assert found[part]["seconds"] >= 0
    repeated = json.loads(run("audit", model, "--json", "--seed", 2, "--part", "reach")[1])
    assert "hidden" not in repeated
    assert repeated["reach"]["states"] == found["reach"]["states"]


def test_a_trained_in_string_is_the_first_candidate(tiny_llama_text, tiny_tokenizer):
    import copy

    import torch

    text = tiny_tokenizer("gathered feathers", add_special_tokens=False).input_ids
    looped = torch.tensor([(text * 9)[:36]])
    model = copy.deepcopy(tiny_llama_text)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        logits = model(looped).logits[0, :-1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, looped[0, 1:]).backward()
        optimizer.step()
    found = audit(model, tiny_tokenizer, parts=["hidden"], tokens=0, threshold=0.9).hidden
    assert found is not None
    assert found.forced == found.vocabulary
    assert text[0] in {candidate.token_id for candidate in found.candidates}
    chosen = next(c for c in found.candidates if c.token_id == text[0])
    assert chosen.ids == tuple((text * 9)[: len(chosen.ids)])
    assert chosen.repetition > 0.9


def test_where_tokens_are_forced(tiny_tokenizer):
    assert forcing_prefix(tiny_tokenizer) == []  # this tokenizer adds no opening token by itself
    opened = tiny_tokenizer.decode(forcing_prefix(tiny_tokenizer, template=True))
    assert opened == "<|user|>\n</s>\n<|assistant|>\n"


def test_a_model_without_an_end_is_audited_but_for_its_lengths(tiny_llama_text, tiny_tokenizer):
    import copy

    model, tokenizer = copy.deepcopy(tiny_llama_text), copy.deepcopy(tiny_tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    found = audit(model, tokenizer, parts=["hidden", "length"], tokens=8)
    assert found.hidden is not None
    assert found.length is None
    assert "no end token" in found.skipped["length"]


def test_candidates_for_prompts_are_words(tiny_llama_text, tiny_tokenizer):
    for token in word_tokens(tiny_llama_text, tiny_tokenizer).tolist():
        word = tiny_tokenizer.decode([token])
        assert word[0] == " "
        assert word[1:].isalpha()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--part", "lenght"), "did you mean length"),
        (("--tokens", -1), "--tokens is -1"),
        (("--threshold", 1.5), "in (0, 1)"),
    ],
)
def test_bad_input_is_one_line(run, model, monkeypatch, arguments, says):
    monkeypatch.delenv("TOKENRY_DEBUG", raising=False)
    code, out, err = run("audit", model, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len([line for line in err.splitlines() if line.strip()]) == 1


def test_an_unknown_model_is_named(run, monkeypatch):
    monkeypatch.delenv("TOKENRY_DEBUG", raising=False)
    code, _, err = run("audit", "smolm2")
    assert code == 2
    assert "smollm2" in err


def test_the_library_refuses_what_the_command_does(tiny_llama_text, tiny_tokenizer):
    with pytest.raises(UnknownNameError, match="part of the audit"):
        audit(tiny_llama_text, tiny_tokenizer, parts=["all"])
    with pytest.raises(InputError, match="threshold"):
        audit(tiny_llama_text, tiny_tokenizer, parts=["hidden"], threshold=2.0)
