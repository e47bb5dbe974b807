"""Times of the phases: the cache's size, the roofline's two sides, curves through medians."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ModelError, UnknownNameError
from tokenry.serving.phases import (
    MACHINES,
    MEASURED,
    SHAPES,
    Machine,
    MeasuredPhases,
    PiecewiseLinear,
    RooflinePhases,
    ServedModel,
    cache_capacity,
    config_kv_bytes,
    kv_cache_bytes,
    machine,
    measure_phases,
    parameters_of,
    phases_of,
)


def test_cache_of_a_70b_model():
    assert kv_cache_bytes(1500, 80, 64, 128) == 2 * 1500 * 8192 * 80 * 2
    assert kv_cache_bytes(1500, 80, 64, 128) / 1e9 == pytest.approx(3.93, abs=0.005)
    assert kv_cache_bytes(1500, 80, 8, 128) / 1e9 == pytest.approx(0.49, abs=0.005)


@pytest.mark.parametrize("length", [5, 8, 30])
def test_cache_of_a_configuration_is_what_the_model_holds(tiny_model, length):
    import torch

    ids = torch.randint(2, 60, (1, length))
    cache = tiny_model(ids, use_cache=True).past_key_values
    held = 0
    for layer in cache.layers:
        window = getattr(tiny_model.config, "sliding_window", None)
        keys = layer.keys
        sliding = type(layer).__name__ == "DynamicSlidingWindowLayer"
        tokens = min(length, window) if sliding and window else keys.shape[2]
        held += 2 * keys.shape[1] * tokens * keys.shape[3] * 2
    assert config_kv_bytes(tiny_model.config, length) == held


def test_parameters_are_counted_from_the_configuration(tiny_model):
    served = ServedModel.from_config(tiny_model.config)
    assert served.parameters == tiny_model.num_parameters()
    assert served.weight_bytes == 2 * served.parameters


def test_the_roofline_is_the_slower_of_arithmetic_and_memory():
    model = ServedModel("toy", 1e9, 1e3, 2e9)
    toy = Machine("toy", 1e12, 1e11, 1e10, 1, 1, compute_share=0.5, memory_share=0.25)
    phases = RooflinePhases(model, toy)
    assert phases.prompt_time(1000) == pytest.approx(2 * 1e9 * 1000 / 5e11)
    assert phases.prompt_time(1) == pytest.approx(2e9 / 2.5e10)
    assert phases.token_time(1, 10**6) == pytest.approx((2e9 + 1e9) / 2.5e10)
    assert phases.token_time(1000, 0) == pytest.approx(2 * 1e9 * 1000 / 5e11)


def test_newer_machines_gain_more_for_prompts_than_for_tokens():
    a, h, capped = MACHINES["A100"], MACHINES["H100"], MACHINES["H100-capped"]
    assert h.flops / a.flops == pytest.approx(3.17, abs=0.01)
    assert h.bandwidth / a.bandwidth == pytest.approx(1.675, abs=0.01)
    for phases in MEASURED.values():
        prompt = phases["A100"].prompt_time(2048) / phases["H100"].prompt_time(2048)
        token = phases["A100"].token_time(8, 0) / phases["H100"].token_time(8, 0)
        assert prompt > 1.9 > 1.5 > token
        assert phases["H100-capped"].token_time(8, 0) == phases["H100"].token_time(8, 0)
    assert capped.bandwidth == h.bandwidth
    assert capped.flops < h.flops


def test_the_roofline_comes_near_the_published_medians():
    for name, measured in MEASURED.items():
        for kind in ("A100", "H100"):
            rough = RooflinePhases(SHAPES[name], MACHINES[kind])
            assert rough.prompt_time(2048) == pytest.approx(
                measured[kind].prompt_time(2048), rel=0.35
            )
            assert 0.4 < rough.token_time(8, 8000) / measured[kind].token_time(8, 8000) < 2.5


@given(
    points=st.dictionaries(st.integers(1, 1000), st.floats(0.001, 10), min_size=2, max_size=8),
    n=st.integers(1, 3000),
)
def test_curves_pass_through_their_points_and_never_fall(points, n):
    xs = sorted(points)
    rising = sorted(points.values())
    line = PiecewiseLinear(tuple(map(float, xs)), tuple(rising))
    for x, y in zip(xs, rising, strict=True):
        assert line(x) == pytest.approx(y)
    noisy = PiecewiseLinear(tuple(map(float, xs)), tuple(points[x] for x in xs))
    assert noisy(n + 1) >= noisy(n) - 1e-9


def test_curves_go_on_along_their_last_piece():
    line = PiecewiseLinear((1.0, 2.0, 4.0), (1.0, 2.0, 6.0))
    assert [line(x) for x in (0, 1, 1.5, 3, 4, 6)] == pytest.approx([1, 1, 1.5, 4, 6, 10])
    with pytest.raises(InputError, match="two points"):
        PiecewiseLinear((1.0,), (1.0,))


def test_published_medians_are_used_where_they_exist():
    measured = phases_of(SHAPES["llama2-70b"], MACHINES["A100"])
    assert measured.prompt_time(1024) == pytest.approx(0.1545)
    assert isinstance(phases_of(ServedModel.of_size("7B"), MACHINES["A100"]), RooflinePhases)


def test_both_phases_are_measured_on_a_model(tiny_model):
    found = measure_phases(tiny_model, (8, 16), (1, 2), context=8, repeats=2)
    assert isinstance(found, MeasuredPhases)
    assert 0 < found.prompt_time(8) <= found.prompt_time(64)
    assert 0 < found.token_time(1, 0) <= found.token_time(4, 0)
    with pytest.raises(ModelError, match="window of"):
        measure_phases(tiny_model, (8, 4096), (1, 2), context=8)


def test_names_and_sizes_that_are_not():
    assert parameters_of("70B") == 70e9
    assert parameters_of("0.5b") == parameters_of("500M") == 5e8
    for size in ("big", "-7B", "70"):
        with pytest.raises(InputError, match="7B"):
            parameters_of(size)
    with pytest.raises(UnknownNameError, match="did you mean"):
        machine("H10")
    with pytest.raises(InputError, match="140 GB"):
        cache_capacity(ServedModel.of_size("70B"), MACHINES["laptop"])
    assert cache_capacity(SHAPES["llama2-70b"], MACHINES["A100"]) > 1_000_000


def test_the_guessed_shape_of_a_size_is_near_the_real_one():
    guessed, real = ServedModel.of_size("69B"), SHAPES["llama2-70b"]
    assert guessed.kv_bytes == pytest.approx(real.kv_bytes, rel=0.25)
    assert guessed.weight_bytes == real.weight_bytes
