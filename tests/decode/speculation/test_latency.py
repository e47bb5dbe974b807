"""The latency curve and the choice of kernels, on a clock that the tests wind."""

import copy

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tokenry.decode.speculation import latency
from tokenry.decode.speculation.context import ContextNGrams
from tokenry.decode.speculation.latency import latency_curve, quick_kernels
from tokenry.decode.speculation.speculate import generate_with_drafter
from tokenry.model.kernels.packed import is_packed, packed


@pytest.fixture(autouse=True)
def steady_machine():
    """Here curves are measured."""


@pytest.fixture
def model(tiny_llama):
    return copy.deepcopy(tiny_llama)  # one that no other test has measured


def takes(monkeypatch, seconds):
    """Let every pass over n tokens take what `seconds(n)` says."""
    passes = []

    class State:
        def __init__(self, model):
            self.model = model

        def append(self, tokens):
            return self.read(len(tokens))

        def tree(self, tokens, parents):
            assert parents.tolist() == [-1] + [0] * (len(tokens) - 1)
            return self.read(len(tokens))

        def read(self, count):
            passes.append(count)
            clock.now += seconds(count, self.model)
            return latency.torch.zeros(count, 4)

        def crop(self, count):
            pass

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(latency.DecodingState, "start", lambda model, ids: State(model))
    return passes


def test_a_steady_machine_is_measured_three_times_and_once_only(model, monkeypatch):
    passes = takes(monkeypatch, lambda count, _: 0.05 + count / 1000)
    curve = latency_curve(model, (1, 4))
    assert curve == pytest.approx({1: 0.051, 4: 0.054})
    assert passes == [1, 4] * 3
    assert latency_curve(model, (4, 1)) == curve
    assert passes == [1, 4] * 3
    assert latency_curve(model, (4, 1, 2))[4] == curve[4]
    assert passes[6:] == [2] * 3


def test_the_best_time_counts_and_the_measuring_goes_on_while_it_improves(model, monkeypatch):
    noise = iter([0.8, 0.4, 0.4, 0.1, 0.105, 0.095, 0.7])
    passes = takes(monkeypatch, lambda count, _: next(noise))
    assert latency_curve(model, (3,)) == pytest.approx({3: 0.095})
    assert passes == [3] * 6  # 0.1 was news, 0.095 was not


def test_a_machine_that_never_gets_steady_is_left_after_eight_rounds(model, monkeypatch):
    falling = iter(0.5**n for n in range(100))
    passes = takes(monkeypatch, lambda count, _: next(falling))
    assert latency_curve(model, (2,)) == {2: 0.5**7}
    assert len(passes) == 8


def test_a_slow_machine_is_measured_once(model, monkeypatch):
    passes = takes(monkeypatch, lambda count, _: 1.5)
    assert latency_curve(model, (1, 2)) == {1: 1.5, 2: 1.5}
    assert passes == [1, 2]


def test_fewer_tokens_never_take_longer_than_more(model, monkeypatch):
    takes(monkeypatch, lambda count, _: {1: 1.0, 2: 3.0, 3: 2.5, 4: 1.5, 8: 2.0}[count])
    assert latency_curve(model, (1, 2, 3, 4, 8)) == {1: 1.0, 2: 1.5, 3: 1.5, 4: 1.5, 8: 2.0}


@pytest.mark.parametrize("faster", [True, False])
def test_the_kernels_are_those_that_the_machine_is_faster_with(model, monkeypatch, faster):
    if not latency.can_pack(next(model.parameters())):
        pytest.skip("no packed kernels here")
    takes(monkeypatch, lambda count, model: 1.0 if is_packed(model) == faster else 2.0)
    with quick_kernels(model):
        assert is_packed(model) == faster
    with quick_kernels(model, True):
        assert is_packed(model)
    with quick_kernels(model, False):
        assert not is_packed(model)
    assert not is_packed(model)


def test_an_outer_block_has_decided(model, monkeypatch):
    passes = takes(monkeypatch, lambda count, _: 1.0)
    with packed(model), quick_kernels(model):
        assert is_packed(model)
    assert not passes


def test_nothing_is_measured_where_the_kernels_are_the_same(model, monkeypatch):
    passes = takes(monkeypatch, lambda count, _: 1.0)
    with quick_kernels(model.double()):
        assert not is_packed(model)
    assert not passes


def test_a_real_curve_is_positive_and_rises(model):
    curve = latency_curve(model, (1, 4, 8))
    assert 0 < curve[1] <= curve[4] <= curve[8]


def test_a_model_with_few_positions_is_measured_inside_them():
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    curve = latency_curve(GPT2LMHeadModel(config).eval())
    assert set(curve) == {1, 2, 3, 4, 8, 16, 32}


def test_both_kernels_write_the_same_text(model):
    prompt = [5, 9, 2, 5, 9, 2, 5]
    texts = [
        generate_with_drafter(model, prompt, ContextNGrams(nodes=3), 12, kernels=kernels).new_ids
        for kernels in (None, True, False)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_short_request_measures_nothing_and_packs_nothing(model, monkeypatch):
    passes = takes(monkeypatch, lambda count, model: count)
    monkeypatch.setattr(latency, "packing_pays", lambda model: pytest.fail("packing was tried"))
    with latency.for_one_request(model, latency.MEASURING_PAYS - 1) as kernels:
        assert kernels is False
        curve = latency_curve(model)
        assert [curve[size] / curve[1] for size in curve] == pytest.approx(
            [latency.ASSUMED[size] for size in latency.SIZES]
        )
        with quick_kernels(model, kernels):
            assert not is_packed(model)
    assert not passes
    latency_curve(model)  # what was assumed is forgotten
    assert passes


def test_a_long_request_measures_and_a_known_curve_is_used(model, monkeypatch):
    passes = takes(monkeypatch, lambda count, model: count)
    with latency.for_one_request(model, latency.MEASURING_PAYS) as kernels:
        assert kernels is None
        curve = latency_curve(model)
    assert passes
    passes.clear()
    with latency.for_one_request(model, 5) as kernels:
        assert kernels is None
        assert latency_curve(model) == curve
    assert not passes
