"""`custom_generate=speculative(...)` against `generate` itself."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.speculation.drop_in import speculative
from tokenry.decode.speculation.goose import Goose

IDS = torch.randint(2, 64, (3, 9), generator=torch.Generator().manual_seed(4))
PADDED = torch.ones_like(IDS)
PADDED[1, :4] = PADDED[2, :7] = 0
OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


def both(model, ids=IDS, attention=PADDED, **options):
    options = OPTIONS | {"attention_mask": attention} | options
    torch.manual_seed(0)
    expected = model.generate(ids, **options)
    torch.manual_seed(0)
    return model.generate(ids, custom_generate=speculative(Goose()), **options), expected


def test_a_left_padded_batch_gets_the_texts_of_generate(tiny_model):
    found, expected = both(tiny_model)
    assert torch.equal(found, expected)


def test_rows_that_end_early_are_filled_up(tiny_model):
    text = both(tiny_model)[1]
    found, expected = both(tiny_model, eos_token_id=[int(text[1, 14]), int(text[2, 12])])
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


def test_a_streamer_sees_every_token(tiny_llama):
    class Streamer:
        def __init__(self):
            self.seen, self.ended = [], False

        def put(self, ids):
            self.seen += ids.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    how = {"custom_generate": speculative(Goose(), streamer=streamer)}
    found = tiny_llama.generate(IDS[:1], **OPTIONS, **how)
    assert streamer.seen == found[0].tolist()
    assert streamer.ended


def test_a_dictionary_is_returned_on_request(tiny_llama):
    how = {"custom_generate": speculative(Goose()), "return_dict_in_generate": True}
    found = tiny_llama.generate(IDS[:1], **OPTIONS, **how)
    assert torch.equal(found.sequences, tiny_llama.generate(IDS[:1], **OPTIONS))


def test_other_algorithms_are_refused(tiny_llama):
    how = {"custom_generate": speculative(Goose())}
    with pytest.raises(InputError, match="num_beams"):
        tiny_llama.generate(IDS[:1], **OPTIONS, **how, num_beams=2)
    with pytest.raises(InputError, match="does not keep output_logits"):
        tiny_llama.generate(
            IDS[:1], **OPTIONS, **how, output_logits=True, return_dict_in_generate=True
        )
