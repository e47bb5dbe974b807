"""Generation under soft prompts and markers, against forward passes over the whole text."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.controls import (
    ControlContrast,
    controlled_state,
    generate_with_control,
    generate_with_markers,
)
from tokenry.decode.samplers.masked import Masked
from tokenry.model.decoding import DecodingState
from tokenry.text.markers import MarkerSchema

SCHEMA = MarkerSchema({"task": ("copy", "sort")})


def controls(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().embedding_dim
    return torch.randn(2, 3, width, generator=generator)


def test_a_control_of_embedded_words_is_the_same_as_the_words(tiny_model):
    words, prompt = torch.tensor([[12, 13, 14]]), torch.tensor([[5, 6], [7, 8]])
    with torch.no_grad():
        control = tiny_model.get_input_embeddings()(words)[0]
    ours = controlled_state(tiny_model, prompt, control)
    plain = DecodingState.start(tiny_model, torch.cat([words.expand(2, -1), prompt], 1))
    for token in (None, 9, 10):
        if token is not None:
            for state in (ours, plain):
                state.append(torch.tensor([token, token + 1]))
        torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-4, atol=1e-4)


def test_the_contrast_is_its_formula_whether_it_reads_on_or_from_the_start(tiny_llama):
    good, bad = controls(tiny_llama)
    contrast = ControlContrast(tiny_llama, bad, 0.7)
    for ids in ([[5, 6]], [[5, 6, 7]], [[5, 6, 7, 8]], [[5, 9]], [[5, 9], [5, 7]]):
        text = torch.tensor(ids)
        own = controlled_state(tiny_llama, text, good).logits
        other = controlled_state(tiny_llama, text, bad).logits
        expected = 1.7 * own.log_softmax(-1) - 0.7 * other.log_softmax(-1)
        torch.testing.assert_close(contrast(text, own), expected, rtol=1e-4, atol=1e-4)
    impossible = own.index_fill(1, torch.tensor([3]), -torch.inf)
    assert (contrast(text, impossible)[:, 3] == -torch.inf).all()


def test_greedy_text_under_a_control(tiny_tokenizer, tiny_llama_text):
    good, bad = controls(tiny_llama_text, seed=1)
    loaded = (tiny_llama_text, tiny_tokenizer)

    def text(control, **options):
        return generate_with_control(
            loaded, "the cat", control, sampler=Masked(greedy=True), max_new_tokens=6, **options
        ).ids[0]

    ids = tiny_tokenizer("the cat")["input_ids"]
    expected: list[int] = []
    for _ in range(6):
        state = controlled_state(tiny_llama_text, torch.tensor([[*ids, *expected]]), good)
        expected.append(int(state.logits.argmax()))
    found = text(good)
    assert found == expected[: len(found)]
    assert found != text(bad)
    assert text(good, against=bad, weight=0.0) == found
    strong = text(good, against=bad, weight=3.0)
    state = controlled_state(tiny_llama_text, torch.tensor([ids]), good).logits.log_softmax(-1)
    other = controlled_state(tiny_llama_text, torch.tensor([ids]), bad).logits.log_softmax(-1)
    assert strong[0] == int((4 * state - 3 * other).argmax())


def test_fixed_markers_stand_in_the_prompt_and_when_forced_in_the_completion(monkeypatch):
    import tokenry.decode.controls as module

    seen = []

    class Text:
        @staticmethod
        def __call__(text, **_):
            return {"input_ids": [ord(character) for character in text]}

    def fake(loaded, ids, **options):
        seen.append("".join(map(chr, ids)))
        return type("S", (), {"texts": ["[task: sort]\nabc" if "sort" not in seen[-1] else "abc"]})

    monkeypatch.setattr(module, "generate", fake)
    loaded = (None, Text())
    (plain,) = generate_with_markers(loaded, "do: ", SCHEMA)
    assert seen[-1] == "do: "
    assert plain == ({"task": "sort"}, "abc")
    generate_with_markers(loaded, "do: ", SCHEMA, {"task": "copy"})
    assert seen[-1] == "do: [task: copy]\n"
    (forced,) = generate_with_markers(loaded, "do: ", SCHEMA, {"task": "sort"}, force=True)
    assert seen[-1] == "do: [task: sort]\n[task: sort]\n"
    assert forced == ({"task": "sort"}, "abc")


def test_the_other_categories_are_inferred_behind_forced_ones(monkeypatch):
    """The forced block stays open while there is something to infer, and the model ends it."""
    import tokenry.decode.controls as module

    schema = MarkerSchema({"task": ("copy", "sort"), "words": int, "tone": str})
    seen, written = [], []

    class Text:
        @staticmethod
        def __call__(text, **_):
            return {"input_ids": [ord(character) for character in text]}

    def fake(loaded, ids, **options):
        seen.append("".join(map(chr, ids)))
        return type("S", (), {"texts": list(written)})

    monkeypatch.setattr(module, "generate", fake)
    written[:] = [" | words: 12 | tone: dry]\nabc", "]\nabc", " and no end of it"]
    found = generate_with_markers((None, Text()), "do: ", schema, {"task": "sort"}, force=True)
    assert seen == ["do: [task: sort]\n[task: sort"]
    assert found == [
        ({"task": "sort", "words": 12, "tone": "dry"}, "abc"),
        ({"task": "sort"}, "abc"),
        ({"task": "sort"}, " and no end of it"),
    ]
    written[:] = ["abc"]
    everything = {"task": "sort", "words": 3, "tone": "dry"}
    found = generate_with_markers((None, Text()), "do: ", schema, everything, force=True)
    assert seen[-1].endswith("[task: sort | words: 3 | tone: dry]\n")
    assert found == [(everything, "abc")]


def test_markers_run_through_generate(tiny_tokenizer, tiny_llama_text):
    found = generate_with_markers(
        (tiny_llama_text, tiny_tokenizer),
        "the cat",
        SCHEMA,
        {"task": "copy"},
        particles=2,
        max_new_tokens=3,
    )
    assert len(found) == 2


def test_what_fits_no_model_is_an_error(tiny_llama):
    with pytest.raises(ShapeError, match="32"):
        controlled_state(tiny_llama, torch.tensor([[5]]), torch.zeros(2, 8))
    with pytest.raises(ShapeError, match="T >= 1"):
        controlled_state(tiny_llama, torch.zeros(1, 0, dtype=torch.long), torch.zeros(2, 32))
    with pytest.raises(InputError, match=r"weight is -1\.0"):
        ControlContrast(tiny_llama, torch.zeros(2, 32), -1.0)
