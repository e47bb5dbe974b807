"""Sampling against the model's own probabilities, whatever its generation settings ask for."""

import itertools
import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.rollouts import rollouts
from tokenry.decode.sample import sample
from tokenry.decode.search import beam_search_policy
from tokenry.lab.toy_training import sample_on
from tokenry.learn.policy.rollouts import RolloutSettings, sample_rollouts
from tokenry.learn.preference.completions import sample_completions
from tokenry.model.modes import evaluating

PROMPT = [1, 2, 1]
TEXTS = list(itertools.product(range(5), repeat=2))
HOSTILE = {
    "do_sample": False,
    "repetition_penalty": 8.0,
    "encoder_repetition_penalty": 5.0,
    "min_p": 0.3,
    "typical_p": 0.4,
    "top_k": 2,
    "top_p": 0.5,
    "top_h": 0.5,
    "epsilon_cutoff": 0.2,
    "eta_cutoff": 0.2,
    "temperature": 0.2,
    "suppress_tokens": [3],
    "begin_suppress_tokens": [2],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 4,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[0]],
    "sequence_bias": [[[2], 9.0]],
    "num_beams": 3,
    "num_return_sequences": 3,
    "length_penalty": 3.0,
    "exponential_decay_length_penalty": (0, 5.0),
    "min_new_tokens": 2,
    "max_length": 4,
    "max_new_tokens": 1,
    "max_time": 1e-9,
    "guidance_scale": 4.0,
    "renormalize_logits": True,
    "penalty_alpha": 0.6,
}


def five_tokens(**generation):
    """A Llama with five tokens and, set by force, these generation settings."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.25,
        attention_dropout=0.5,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig()
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return model


@torch.no_grad()
def next_logits(model, ids):
    with evaluating(model):
        return model(torch.tensor([ids])).logits[0, -1].float()


def exact(model, temperature=1.0):
    """The probability of each of the 25 texts of two tokens."""
    shares = []
    for first, second in TEXTS:
        one = (next_logits(model, PROMPT) / temperature).softmax(-1)[first]
        two = (next_logits(model, [*PROMPT, first]) / temperature).softmax(-1)[second]
        shares.append(float(one * two))
    return shares


def unlikely_far(texts, probabilities):
    """Hoeffding's bound for each frequency, over all of them below 1e-7 by chance."""
    bound = math.sqrt(math.log(2 * len(TEXTS) / 1e-7) / (2 * len(texts)))
    counts = [sum(tuple(text) == wanted for text in texts) / len(texts) for wanted in TEXTS]
    far = [abs(a - b) for a, b in zip(counts, probabilities, strict=True)]
    assert sum(counts) == pytest.approx(1.0)
    return max(far) > bound


class Ids:
    """A tokenizer's special tokens."""

    eos_token_id = None
    pad_token_id = 0


def by_rollouts(model, n):
    ids = torch.tensor([PROMPT])
    settings = RolloutSettings(samples=n, max_new_tokens=2)
    batch = sample_rollouts(model, ids, torch.ones_like(ids).bool(), settings)
    return [row[target].tolist() for row, target in zip(batch.ids, batch.target, strict=True)]


CALLERS = {
    "sample_rollouts": by_rollouts,
    "sample_completions": lambda model, n: sample_completions(
        model, Ids(), [PROMPT], n, max_new_tokens=2
    )[0],
    "rollouts": lambda model, n: rollouts(model, [PROMPT], n, max_new_tokens=2)[0],
    "sample_on": lambda model, n: sample_on(
        model, torch.tensor([PROMPT] * n), 2, torch.Generator().manual_seed(0)
    ).tolist(),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("training", [False, True])
def test_what_is_sampled_is_the_softmax_whatever_the_generation_settings_say(caller, training):
    model = five_tokens(**HOSTILE).train(training)
    torch.manual_seed(0)
    texts = CALLERS[caller](model, 6000)
    assert len(texts) == 6000
    probabilities = exact(model)
    assert not unlikely_far(texts, probabilities)
    assert unlikely_far(texts, exact(model, temperature=0.7))  # the bound is narrow enough
    assert model.training == training


@pytest.mark.parametrize("caller", ["sample_rollouts", "sample_completions"])
def test_every_end_token_of_the_model_ends_a_completion(caller):
    model = five_tokens(eos_token_id=[0, 3, 4])
    seen = set()
    for text in CALLERS[caller](model, 400):
        assert not {0, 3, 4} & set(text[:-1])
        if len(text) == 1:
            assert text[0] in {0, 3, 4}
            seen.add(text[0])
    assert seen == {0, 3, 4}


@pytest.mark.parametrize("width", [1, 4])
def test_beam_search_is_of_the_model_whatever_its_generation_settings_say(width):
    settings = {name: value for name, value in HOSTILE.items() if name != "max_time"}
    plain, hostile = five_tokens(), five_tokens(**settings)
    prompts = [PROMPT, [4, 3, 0, 2]]
    found = beam_search_policy(hostile, prompts, width, max_new_tokens=4, ends=[3])
    assert found == beam_search_policy(plain, prompts, width, max_new_tokens=4, ends=[3])
    assert hostile.generation_config.repetition_penalty == 8.0  # and they stay as they were


def test_a_row_draws_the_same_numbers_whoever_ends_beside_it():
    """leave=False: with and without end tokens, a text is the same up to its end."""
    model, ids = five_tokens(), torch.tensor([PROMPT] * 40)
    options = {"max_new_tokens": 6, "leave": False}
    draw = torch.Generator
    free = sample(model, ids, **options, generator=draw().manual_seed(0))
    ended = sample(model, ids, **options, ends=[0, 2], generator=draw().manual_seed(0))
    assert {len(text) for text in free} == {6}
    for whole, text in zip(free, ended, strict=True):
        assert whole[: len(text)] == text
        assert text[-1] in (0, 2) or len(text) == 6
    assert len({len(text) for text in ended}) > 2


def test_temperature_zero_takes_the_likeliest_token_and_processors_come_before():
    model = five_tokens()
    [greedy] = sample(model, torch.tensor([PROMPT]), max_new_tokens=3, temperature=0.0)
    expected: list[int] = []
    for _ in range(3):
        expected.append(int(next_logits(model, [*PROMPT, *expected]).argmax()))
    assert greedy == expected
    seen = []

    def never_likeliest(ids, logits):
        seen.append(ids.tolist())
        return logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)

    [second] = sample(
        model,
        torch.tensor([PROMPT]),
        max_new_tokens=2,
        temperature=0.0,
        processors=[never_likeliest],
    )
    assert second[0] == int(next_logits(model, PROMPT).topk(2).indices[1])
    assert seen == [[PROMPT], [[*PROMPT, second[0]]]]


def test_where_weights_are_shared_out_a_process_goes_on_until_all_have_ended(monkeypatch):
    """It makes the passes that the others still need, and its completions stay the same."""
    from tokenry.model import compat

    model, ids = five_tokens(), torch.tensor([PROMPT] * 5)
    draw = torch.Generator
    options = {"max_new_tokens": 7, "ends": [0, 1, 2, 3, 4], "leave": False}
    alone = sample(model, ids, **options, generator=draw().manual_seed(0))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(compat, "passes_must_agree", lambda model: True)
    monkeypatch.setattr(compat, "any_process", lambda condition, together: together)
    together = sample(model, ids, **options, generator=draw().manual_seed(0))
    assert together == alone
    assert {len(text) for text in together} == {1}
    assert len(passes) == 7


def test_what_draws_nothing_is_refused():
    model, ids = five_tokens(), torch.tensor([PROMPT])
    with pytest.raises(InputError, match="temperature is nan"):
        sample(model, ids, max_new_tokens=1, temperature=math.nan)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        sample(model, ids, max_new_tokens=0)
    with pytest.raises(InputError, match="no distribution"):
        sample(model, ids, max_new_tokens=1, processors=[lambda _, x: x.fill_(-torch.inf)])
