"""The exact mode against enumeration."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.constraints.base import Anything
from tokenry.decode.constraints.length import Length
from tokenry.decode.exact_mode import exact_mode, exact_modes_by_length
from tokenry.decode.samplers.request import Request
from tokenry.lab.token_rule import OddSum
from tokenry.model.decoding import DecodingState
from tokenry.tasks.worlds.toy_lm import ToyLM, ToyState, odd_sum


def request(model, constraint=None, limit=5, **options):
    start = ToyState.start(model, torch.zeros(1, 0, dtype=torch.long))
    constraint = constraint or Anything(model.vocab_size, [0])
    return Request(start, constraint, max_new_tokens=limit, **options)


@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("seed", range(3))
def test_equals_enumeration(seed, width):
    model = ToyLM(vocab_size=5, seed=seed, scale=1.0)
    texts = model.texts(6)
    mode = exact_mode(request(model, limit=6), width=width)
    assert mode.proven
    assert tuple(mode.ids) == max(texts, key=texts.__getitem__)
    assert mode.logprob == pytest.approx(max(texts.values()), abs=1e-5)


@pytest.mark.parametrize("width", [1, 64])
@pytest.mark.parametrize("seed", range(2))
def test_equals_enumeration_at_every_length(seed, width):
    model = ToyLM(vocab_size=5, seed=seed, scale=1.0)
    texts = model.texts(6)
    modes = exact_modes_by_length(request(model, limit=6), width=width)
    assert list(modes) == [0, 1, 2, 3, 4, 5]
    for length, mode in modes.items():
        best = max((t for t in texts if len(t) == length), key=texts.__getitem__)
        assert tuple(mode.ids) == best
        assert mode.logprob == pytest.approx(texts[best], abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_an_attribute_a_constraint_and_both(seed):
    model = ToyLM(vocab_size=4, seed=seed)
    texts = model.texts(5)
    odd = max((t for t in texts if odd_sum(t)), key=texts.__getitem__)
    long = max((t for t in texts if odd_sum(t) and len(t) == 3), key=texts.__getitem__)
    assert tuple(exact_mode(request(model), odd_sum).ids) == odd
    assert tuple(exact_mode(request(model, OddSum())).ids) == odd
    both = exact_mode(request(model, Length(3, 3, range(4), [0])), odd_sum)
    assert tuple(both.ids) == long
    assert exact_mode(request(model), lambda text: False) is None


def test_an_admissible_bound_saves_passes_and_changes_nothing():
    model = ToyLM(vocab_size=4, seed=1, scale=1.0)
    texts = model.texts(6)
    wanted = {text for text in texts if text[-2:] == (3, 3) and sum(text) == 12}

    def best_rest(prefixes):  # the tightest bound there is
        def rest(prefix):
            own = sum(
                float(model.logits(prefix[:at]).double().log_softmax(-1)[token])
                for at, token in enumerate(prefix)
            )
            inside = [texts[t] - own for t in wanted if t[: len(prefix)] == tuple(prefix)]
            return max(inside, default=-math.inf) + 1e-6  # rounding must not cut the best off

        return [rest(prefix) for prefix in prefixes]

    plain = exact_mode(request(model, limit=6), wanted.__contains__, width=4)
    bounded = exact_mode(request(model, limit=6), wanted.__contains__, width=4, bound=best_rest)
    assert plain.ids == bounded.ids == list(max(wanted, key=texts.__getitem__))
    assert bounded.passes < plain.passes / 2


def test_noise_on_the_empty_text_is_the_mode_but_not_the_conditional_one():
    """2^10 equally likely good texts of length 10, and one percent on the empty one."""

    class Noisy(ToyLM):
        def logits(self, text):
            if not text:
                return torch.tensor([0.01, 0.495, 0.495]).log()
            if len(text) < 10:
                return torch.tensor([0.0, 0.5, 0.5]).log()
            return torch.tensor([1.0, 0.0, 0.0]).log()

    model = Noisy(vocab_size=3, order=0)
    mode = exact_mode(request(model, limit=12))
    assert mode.ids == []
    assert mode.logprob == pytest.approx(math.log(0.01), abs=1e-5)
    conditional = exact_mode(request(model, limit=12), accept=bool)
    assert len(conditional.ids) == 10
    assert conditional.logprob == pytest.approx(math.log(0.99 / 1024), abs=1e-4)
    by_length = exact_modes_by_length(request(model, limit=12))
    assert list(by_length) == [0, 10]


def test_giving_up_is_said():
    model = ToyLM(vocab_size=5, seed=0, scale=0.1)
    given_up = exact_modes_by_length(request(model, limit=7), width=1, max_passes=9)[6]
    assert not given_up.proven
    assert given_up.passes == 9
    with pytest.raises(InputError, match="width"):
        exact_mode(request(model), width=0)


def test_reads_a_transformer_in_batches(tiny_llama):
    prompt = torch.tensor([[5, 9]])
    small = [t for t in range(64) if t not in (1, 2, 3, 4)]

    def only_few(ids, logits):
        return logits.index_fill(1, torch.tensor(small), -math.inf)

    asked = Request(
        DecodingState.start(tiny_llama, prompt),
        Anything(64, [1]),
        (5, 9),
        max_new_tokens=4,
        processors=[only_few],
    )
    found = exact_modes_by_length(asked, width=7)
    best: dict[int, tuple[float, list[int]]] = {}

    @torch.no_grad()
    def walk(text, logprob):
        logits = tiny_llama(torch.tensor([[5, 9, *text]])).logits[:, -1].double()
        step = only_few(None, logits).log_softmax(-1)[0].tolist()
        value = logprob + step[1]
        if value > best.get(len(text), (-math.inf, []))[0]:
            best[len(text)] = (value, text)
        if len(text) < 3:
            for token in (2, 3, 4):
                walk([*text, token], logprob + step[token])

    walk([], 0.0)
    assert {length: mode.ids for length, mode in found.items()} == {
        length: text for length, (_, text) in best.items()
    }
    for length, (value, _) in best.items():
        assert found[length].logprob == pytest.approx(value, abs=1e-3)
