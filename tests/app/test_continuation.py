"""What `tokenry generate` says when a text cannot go on, has not ended, or a function fails."""

import json
import math
import shutil

import pytest
import torch

from tokenry.app.continuation import ConstraintMask, Limits, sampled
from tokenry.core.errors import ConstraintError
from tokenry.decode.constraints.grammar import Grammar
from tokenry.decode.samplers.smc import SMC
from tokenry.decode.speculation import latency
from tokenry.decode.speculation.speculate import drafter as drafters
from tokenry.decode.speculation.verify import draw

WAYS = {"sampled": [], "drafted": ["--draft", "recycling"], "cached": ["--cache", "h2o:8"]}


@pytest.fixture(params=WAYS)
def base(request, model):
    return ["generate", "the cat", "-m", model, *WAYS[request.param]]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_dead_end_is_one_line(refused, base, temperature):
    digits = [part for digit in "0123456789" for part in ("--stop", digit)]
    line = refused(*base, "-t", temperature, "-n", 9, "--regex", "[0-9]{3}", *digits)
    assert "no token satisfies the constraint after '" in line
    assert "(1 tokens)" in line


def test_no_token_is_drawn_where_none_is_possible():
    for logits in (torch.full((5,), -math.inf), torch.full((5,), math.nan)):
        for temperature in (0.0, 1.0):
            with pytest.raises(ConstraintError, match="no token can follow"):
                draw(logits, temperature)


def test_a_mask_leaves_no_token_that_others_have_excluded(tiny_tokenizer):
    one = tiny_tokenizer.convert_tokens_to_ids("1")
    mask = ConstraintMask(Grammar.regex("[0-9]+", tiny_tokenizer), [5, 6], tiny_tokenizer)
    scores = torch.zeros(1, len(tiny_tokenizer))
    assert float(mask(torch.tensor([[5, 6]]), scores)[0, one]) == 0
    letter = tiny_tokenizer.convert_tokens_to_ids("a")
    scores[0, [token for token in range(len(tiny_tokenizer)) if token != letter]] = -math.inf
    with pytest.raises(ConstraintError, match=r"after '1' \(1 tokens\)"):
        mask(torch.tensor([[5, 6, one]]), scores)


def test_a_text_that_has_merely_not_ended_is_told_from_one_that_fails(refused, run, base):
    base = [*base, "-t", 0, "-n", 1]
    line = refused(*base, "--regex", "[0-9]+")
    assert "the text satisfies the constraint and has not ended within 1 tokens ('" in line
    assert "--steer ending" in line
    ended = [*base[:-1], 2, "--regex", "[0-9]+", "--steer", "ending"]
    assert run(*ended)[1].strip().isdecimal()
    line = refused(*base, "--regex", "[0-9]{30}")
    assert "no text satisfied the constraint within 1 tokens, for example '" in line
    assert "--steer ending" not in line


def test_a_users_function_that_raises_is_named(refused, base, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def yes(text): return 1 / (len(text) - len(text))\ndef two(a, b): ...\n")
    for name, kind in (("yes", "ZeroDivisionError"), ("two", "TypeError")):
        line = refused(*base, "-n", 3, "--constrain", f"predicate:complete={own}:{name}")
        assert f"--constrain predicate {own}:{name} raised {kind}: " in line


def test_a_critic_that_raises_or_gives_no_number_is_named(refused, run, model, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def nan(text): return float('nan')\ndef word(text): return 'x'\n")
    base = ["generate", "the cat", "-m", model, "-n", 3, "-p", 2]
    assert "raised ValueError: could not convert" in refused(*base, "--critic", f"{own}:word")
    assert "is nan; it must be a number in [-inf, inf)" in refused(*base, "--critic", f"{own}:nan")


def test_a_critic_is_heard_whatever_way_the_sampler_is_named(tiny_llama_text, tiny_tokenizer):
    loaded = (tiny_llama_text, tiny_tokenizer)
    choice = Grammar.regex("[27]", tiny_tokenizer)
    for sampler in ("awrs", "smc", SMC()):
        found = sampled(
            loaded,
            "the cat",
            choice,
            Limits(3),
            sampler,
            particles=40,
            critic=lambda text: -50.0 * text.startswith("2"),
        )
        weights = zip(found.log_weights, found.texts, strict=True)
        assert all((weight < -50) == text.startswith("2") for weight, text in weights)


def test_the_command_line_says_that_the_window_ended_a_text(run, refused, tmp_path, model):
    short = shutil.copytree(model, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 12}))
    base = ["generate", "the cat sat", "-m", short, "-t", 0, "-n", 40]
    for how in WAYS.values():
        assert "note: a text ended because it fills the model's window of 12" in run(*base, *how)[2]
        line = refused(*base, *how, "--regex", "[0-9]{30}")
        assert "tokens that the model's window has behind the prompt" in line


def test_a_messages_option_is_not_turned_into_its_opposite(refused, model):
    line = refused("generate", "a", "-m", model, "--bytes", "--regex", "a")
    assert "--bytes and --ensemble write one text" in line


@pytest.mark.parametrize("name", sorted({*drafters.names()} - {"mtp", "fspad", "dyspec"}))
def test_a_draft_in_a_short_command_measures_nothing(run, model, monkeypatch, name):
    plain = run("generate", "the cat", "-m", model, "-t", 0, "-n", 12)[1]
    monkeypatch.setattr(latency, "measured", lambda *_: pytest.fail("the machine was measured"))
    monkeypatch.setattr(latency, "packing_pays", lambda _: pytest.fail("packing was tried"))
    assert run("generate", "the cat", "-m", model, "-t", 0, "-n", 12, "--draft", name)[1] == plain


def test_a_cached_text_is_of_the_model_whatever_its_generation_settings_say(
    tiny_llama_text, tiny_tokenizer
):
    """As without a cache, whose sampler never reads those settings."""
    import copy

    from tokenry.app.continuation import cached
    from tokenry.model.cache.full import Full

    limits = Limits(max_new_tokens=8, temperature=0.0)
    texts = []
    for settings in ({}, {"repetition_penalty": 9.0, "suppress_tokens": [*range(60, 300)]}):
        model = copy.deepcopy(tiny_llama_text)
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        found = cached((model, tiny_tokenizer), "the cat", None, limits, Full(), must_end=False)
        texts.append(found.ids)
        assert model.generation_config.repetition_penalty == settings.get("repetition_penalty")
    assert texts[0] == texts[1]
