"""Traces: the published medians and means, Poisson gaps, and files."""

import numpy as np
import pytest

from tokenry.core.errors import InputError, UnknownNameError
from tokenry.serving.trace import LENGTHS, LEVELS, Trace, poisson_trace, read_trace


@pytest.mark.parametrize(
    ("name", "medians", "means"),
    [("coding", (1469, 13), (2048, 27.9)), ("conversation", (1020, 129), (1155, 211))],
)
def test_lengths_are_those_of_the_published_services(name, medians, means):
    trace = poisson_trace(5, name, 100_000, seed=0)
    for tokens, median, mean in zip((trace.prompt, trace.output), medians, means, strict=True):
        assert np.median(tokens) == pytest.approx(median, rel=0.02, abs=1)
        assert tokens.mean() == pytest.approx(mean, rel=0.06)
    for quantiles in (LENGTHS[name].prompt, LENGTHS[name].output):
        assert len(quantiles) == len(LEVELS)
        assert list(quantiles) == sorted(quantiles)


def test_arrivals_are_poisson_and_repeat_by_seed():
    trace = poisson_trace(4, "coding", 50_000, seed=3)
    gaps = np.diff(trace.arrival)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    assert trace.rate == pytest.approx(4, rel=0.03)
    same = poisson_trace(4, "coding", 50_000, seed=3)
    np.testing.assert_array_equal(trace.arrival, same.arrival)
    np.testing.assert_array_equal(trace.output, same.output)
    other = poisson_trace(4, "coding", 50_000, seed=4)
    assert (other.prompt != trace.prompt).any()


def test_stretching_keeps_the_requests():
    trace = poisson_trace(4, "coding", 100)
    fast = trace.at_rate(16)
    assert fast.rate == pytest.approx(16)
    np.testing.assert_array_equal(fast.prompt, trace.prompt)
    np.testing.assert_allclose(np.diff(fast.arrival) * 16, np.diff(trace.arrival) * trace.rate)


def test_files_are_read_by_their_columns_and_sorted(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("prompt,arrival,output\n10,2.5,3\n20,1.0,4\n")
    trace = read_trace(file)
    assert trace.arrival.tolist() == [1.0, 2.5]
    assert trace.prompt.tolist() == [20, 10]
    azure = tmp_path / "azure.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.4799600,3180,8\n"
    )
    assert read_trace(azure).rate == pytest.approx(2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival,prompt,output\n", "has no rows"),
        ("", "no column arrival"),
        ("arrival,prompt\n1,2\n", "no column output"),
        ("arrival,prompt,output\n1,2,3\n2,x,3\n", "mine.csv:3"),
        ("arrival,prompt,output\nsoon,2,3\n", "mine.csv:2"),
        ("arrival,prompt,output\n1,2\n", "mine.csv:2"),
        ("arrival,prompt,output\n1,0,3\n", "at least one prompt token"),
        ("arrival,prompt,output\nnan,1,3\n", "rising order"),
    ],
)
def test_files_that_are_no_trace_say_why(tmp_path, text, says):
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        read_trace(file)


def test_impossible_rates_and_names():
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="rate is"):
            poisson_trace(rate)
    with pytest.raises(InputError, match="requests is"):
        poisson_trace(1, requests=0)
    with pytest.raises(UnknownNameError, match="coding"):
        poisson_trace(1, "codin")
    with pytest.raises(InputError, match="no such file"):
        read_trace("nowhere.csv")
    with pytest.raises(InputError, match="two requests"):
        _ = Trace(np.array([1.0]), np.array([1]), np.array([1])).rate
