"""`custom_generate=speculative(...)` against `generate` itself."""

import copy

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    MaxLengthCriteria,
    StaticCache,
    StopStringCriteria,
)

from tokenry.core.errors import InputError
from tokenry.decode.speculation.context import ContextNGrams
from tokenry.decode.speculation.drop_in import speculative
from tokenry.decode.speculation.goose import Goose

IDS = torch.randint(2, 64, (3, 9), generator=torch.Generator().manual_seed(4))
PADDED = torch.ones_like(IDS)
PADDED[1, :4] = PADDED[2, :7] = 0
OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
TWO = {"ids": IDS[:2], "attention": PADDED[:2]}
ONE = {"ids": IDS[1:2], "attention": PADDED[1:2]}
NEGATIVE = torch.randint(2, 64, (2, 3), generator=torch.Generator().manual_seed(5))

# options of GenerationConfig and arguments of `generate` that decide what a greedy text is
GREEDY = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[v] for v in range(2, 20)] + [[30, 31]]},
    "suppress_tokens": {"suppress_tokens": list(range(20, 50))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(2, 40))},
    "sequence_bias": {"sequence_bias": {(v,): 4.0 for v in range(5, 9)} | {(7, 8): -9.0}},
    "min_length": {"min_length": 20, "eos_token_id": list(range(32))},
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": list(range(32))},
    "forced_bos_token_id": {"forced_bos_token_id": 5},
    "forced_eos_token_id": {"forced_eos_token_id": 9},
    "exponential_decay_length_penalty": {
        "exponential_decay_length_penalty": (3, 1.6),
        "eos_token_id": 1,
    },
    "guidance_scale": {"guidance_scale": 1.8},
    "guidance_scale, negative prompts": {"guidance_scale": 2.5, "negative_prompt_ids": NEGATIVE},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda row, ids: range(2 + 7 * row, 40 + 7 * row - len(ids))
    },
    "watermarking_config": {"watermarking_config": {"greenlist_ratio": 0.4, "bias": 6.0}},
    "remove_invalid_values": {"remove_invalid_values": True, "renormalize_logits": True},
    "eos_token_id": {"eos_token_id": list(range(50, 64))},
    "max_length": {"max_new_tokens": None, "max_length": 17},
    "stopping_criteria, max_length": {"stopping_criteria": [MaxLengthCriteria(15)]},
    "stopping_criteria, eos": {
        "stopping_criteria": [EosTokenCriteria(list(range(40, 64)))],
        "eos_token_id": 1,
    },
    "use_cache": {"use_cache": False},
    "several": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "forced_eos_token_id": 3},
}
SAMPLED = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.2},
    "top_h": {"top_h": 0.6},
    "typical_p": {"typical_p": 0.5},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.05},
    "repetition_penalty": {"repetition_penalty": 1.7, "renormalize_logits": True},
}
DRAFTERS = (Goose, ContextNGrams)


def both(model, ids=IDS, attention=PADDED, drafter=Goose(), **options):  # noqa: B008
    options = OPTIONS | {"attention_mask": attention} | options
    torch.manual_seed(0)
    expected = model.generate(ids, **options)
    torch.manual_seed(0)
    return model.generate(ids, custom_generate=speculative(drafter), **options), expected


def test_a_left_padded_batch_gets_the_texts_of_generate(tiny_model):
    found, expected = both(tiny_model)
    assert torch.equal(found, expected)


def test_rows_that_end_early_are_filled_up(tiny_model):
    text = both(tiny_model)[1]
    found, expected = both(tiny_model, eos_token_id=[int(text[1, 14]), int(text[2, 12])])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("rows", [ONE, TWO], ids=["one row", "two rows"])
@pytest.mark.parametrize("name", GREEDY)
def test_every_option_gives_the_text_of_generate(tiny_llama, name, rows, drafter):
    options = dict(GREEDY[name])
    if (negative := options.get("negative_prompt_ids")) is not None:
        options["negative_prompt_ids"] = negative[: len(rows["ids"])]
    drafter = drafter()
    for _ in range(2):  # cold, and with what it has learned
        found, expected = both(tiny_llama, **rows, drafter=drafter, **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", SAMPLED)
def test_every_option_of_sampling_gives_the_text_of_generate(tiny_llama, name, drafter):
    options = {"do_sample": True, "top_k": 0} | SAMPLED[name]
    found, expected = both(tiny_llama, **ONE, drafter=drafter(), **options)
    assert torch.equal(found, expected)


def test_settings_of_generate_hold(tiny_model):
    one = {"ids": IDS[:1], "attention": PADDED[:1]}
    settings = (
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 12, "eos_token_id": list(range(32))},
        {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    )
    for options in settings:
        found, expected = both(tiny_model, **one, **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [ONE, TWO], ids=["one row", "two rows"])
@pytest.mark.parametrize("given", ["to speculative", "as criterion"])
def test_stop_strings_end_the_text_where_generate_ends_it(
    tiny_llama_text, tiny_tokenizer, rows, given
):
    def text(**options):
        options = OPTIONS | {"max_new_tokens": 30, "eos_token_id": 1} | options
        return tiny_llama_text.generate(rows["ids"], attention_mask=rows["attention"], **options)

    def readable(row):
        pieces = [tiny_tokenizer.decode(token) for token in row]
        return next(piece for piece in pieces[4:] if piece.isascii() and piece not in pieces[:4])

    strings = [readable(row) for row in text()[:, 9:].tolist()]
    expected = text(stop_strings=strings, tokenizer=tiny_tokenizer)
    assert expected.shape[1] < 39
    if given == "as criterion":
        how = {"stopping_criteria": [StopStringCriteria(tiny_tokenizer, strings)]}
        found = text(custom_generate=speculative(Goose()), **how)
    else:
        drop_in = speculative(Goose(), tokenizer=tiny_tokenizer, stop_strings=strings)
        found = text(custom_generate=drop_in)
    assert torch.equal(found, expected)


class Streamer:
    def __init__(self):
        self.seen, self.ended = [], False

    def put(self, ids):
        self.seen += ids.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("given", ["to generate", "to speculative"])
def test_a_streamer_sees_every_token(tiny_llama, given):
    streamer = Streamer()
    if given == "to generate":
        how = {"custom_generate": speculative(Goose()), "streamer": streamer}
    else:
        how = {"custom_generate": speculative(Goose(), streamer=streamer)}
    found = tiny_llama.generate(IDS[:1], **OPTIONS, **how)
    assert streamer.seen == found[0].tolist()
    assert streamer.ended


class Shift(LogitsProcessor):
    """Forbids the row's latest token and those around it, through its memory of one text."""

    def __call__(self, input_ids, scores):
        scores[:, (input_ids[:, -1:] + torch.arange(9)).flatten() % 64] -= 5
        return scores


def stop_at_seven(input_ids, scores, **kwargs):
    return (input_ids[:, -1] % 7 == 0) & (scores is None)


def test_processors_and_criteria_of_ones_own_go_with_one_row(tiny_llama):
    options = {"logits_processor": [Shift()], "stopping_criteria": [stop_at_seven]}
    found, expected = both(tiny_llama, **ONE, **options)
    assert torch.equal(found, expected)
    assert expected.shape[1] < 29


def test_they_are_refused_in_a_batch_unless_they_say_that_rows_do_not_matter(
    tiny_llama, monkeypatch
):
    for name, options in (
        ("Shift", {"logits_processor": [Shift()]}),
        ("stop_at_seven", {"stopping_criteria": [stop_at_seven], "eos_token_id": 1}),
    ):
        with pytest.raises(InputError, match=f"{name} is not known to judge every row"):
            both(tiny_llama, **TWO, **options)
    monkeypatch.setattr(stop_at_seven, "row_wise", True, raising=False)
    found, expected = both(tiny_llama, **TWO, stopping_criteria=[stop_at_seven], eos_token_id=1)
    assert torch.equal(found, expected)
    endless = copy.deepcopy(tiny_llama)
    endless.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="in a batch needs an eos_token_id"):
        both(endless, **TWO, stopping_criteria=[stop_at_seven])


def test_a_dictionary_is_returned_on_request(tiny_llama):
    how = {"custom_generate": speculative(Goose()), "return_dict_in_generate": True}
    found = tiny_llama.generate(IDS[:1], **OPTIONS, **how)
    assert torch.equal(found.sequences, tiny_llama.generate(IDS[:1], **OPTIONS))


EMBEDDED = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
REFUSED = {
    "num_beams": ({"num_beams": 2}, "num_beams=2"),
    "output_logits": (
        {"output_logits": True, "return_dict_in_generate": True},
        "does not keep output_logits",
    ),
    "prompt_lookup": ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens asks for"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha asks for"),
    "early exit": ({"assistant_early_exit": 1}, "assistant_early_exit asks for"),
    "static": ({"cache_implementation": "static"}, "a static cache has no way to"),
    "offloaded": ({"cache_implementation": "offloaded"}, "offloaded"),
    "position_ids": ({"position_ids": torch.arange(9)[None] + 3}, "cannot take position_ids"),
    "inputs_embeds": ({"inputs_embeds": EMBEDDED}, "cannot take inputs_embeds"),
    "synced_gpus": ({"synced_gpus": True}, "different numbers of passes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_speculation_is_not_is_refused_by_name(tiny_llama, name):
    options, message = REFUSED[name]
    how = {"custom_generate": speculative(Goose())}
    with pytest.raises(InputError, match=message):
        tiny_llama.generate(IDS[:1], **OPTIONS, **how, **options)


def test_models_and_caches_besides_the_usual_are_refused_by_name(tiny_llama):
    how = {"custom_generate": speculative(Goose())}
    with pytest.raises(InputError, match="assistant_model asks for"):
        tiny_llama.generate(IDS[:1], **OPTIONS, **how, assistant_model=tiny_llama)
    static = StaticCache(config=tiny_llama.config, max_cache_len=64)
    with pytest.raises(InputError, match="a static cache has no way to"):
        tiny_llama.generate(IDS[:1], **OPTIONS, **how, past_key_values=static)
    right = PADDED[:2].flip(1)
    with pytest.raises(InputError, match="padded at the right"):
        tiny_llama.generate(IDS[:2], **OPTIONS, **how, attention_mask=right)
    with pytest.raises(InputError, match="go together"):
        speculative(Goose(), stop_strings="x")


def test_a_text_that_fills_the_window_ends_there_and_says_so(tiny_llama):
    expected = tiny_llama.generate(IDS[:1], **OPTIONS)
    model = copy.deepcopy(tiny_llama)
    model.config.max_position_embeddings = 16
    for drafter in DRAFTERS:
        how = {"custom_generate": speculative(drafter())}
        with pytest.warns(UserWarning, match="fills the model's window of 16 tokens"):
            found = model.generate(IDS[:1], **OPTIONS, **how)
        assert torch.equal(found, expected[:, :16])
