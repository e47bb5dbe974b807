"""The serving cluster against closed forms: one request alone, queues with a known mean, work that
is neither lost nor made."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.errors import InputError
from tokenry.serving.instances import Pool
from tokenry.serving.phases import MeasuredPhases
from tokenry.serving.policies import MixedPools, SharedPool, SplitPools, shortest
from tokenry.serving.simulation import Cluster, Link, simulate
from tokenry.serving.trace import Trace, poisson_trace

# a millisecond per prompt token; 50 ms a step, and 1 ms for each further request in the batch
PHASES = MeasuredPhases.of({1: 0.001, 1001: 1.001}, {1: 0.050, 101: 0.150})
FLAT = MeasuredPhases.of({1: 0.001, 1001: 1.001}, {1: 0.050, 101: 0.050})
LINK = Link(bandwidth=1e6, latency=0.01, overlap=0.9)
KV = 1000.0

SHARED = Cluster((Pool(PHASES, 2),), KV, LINK)
SPLIT = Cluster((Pool(PHASES, 1, "prompt"), Pool(PHASES, 1, "token")), KV, LINK)


def requests(*rows):
    arrival, prompt, output = zip(*rows, strict=True)
    return Trace(np.array(arrival, dtype=float), np.array(prompt), np.array(output))


traces = st.lists(
    st.tuples(st.floats(0, 20), st.integers(1, 3000), st.integers(1, 60)), min_size=1, max_size=40
).map(lambda rows: requests(*sorted(rows)))
clusters = st.sampled_from(
    [
        (Cluster((Pool(PHASES, 3, capacity=8000),), KV, LINK), SharedPool()),
        (
            Cluster((Pool(PHASES, 2, "prompt"), Pool(PHASES, 2, "token", 4000)), KV, LINK),
            SplitPools(),
        ),
        (
            Cluster((Pool(PHASES, 2, "prompt", 4000), Pool(PHASES, 2, "token", 4000)), KV, LINK),
            MixedPools(prompt_limit=1500),
        ),
    ]
)
batchings = st.sampled_from(["mixed", "prompts first"])


def test_one_request_alone_in_one_pool():
    served = simulate(requests((5, 300, 11)), SHARED, SharedPool())
    assert served.ttft == pytest.approx([0.300])
    assert served.e2e == pytest.approx([0.300 + 10 * 0.050])
    assert served.tbt_mean == pytest.approx([0.050])
    assert served.tbt_max == pytest.approx([0.050])


@pytest.mark.parametrize("policy", [SplitPools(), MixedPools()])
def test_one_request_alone_in_two_pools_adds_what_of_the_transfer_is_not_hidden(policy):
    served = simulate(requests((5, 300, 11)), SPLIT, policy)
    transfer = 0.01 + 0.1 * 300 * 1000 / 1e6
    assert served.ttft == pytest.approx([0.300])
    assert served.e2e == pytest.approx([0.300 + transfer + 10 * 0.050])
    assert served.tbt_max == pytest.approx([transfer + 0.050])  # it delays the second token alone
    assert (served.prompt_machine[0], served.token_machine[0]) == (0, 1)


def test_an_answer_of_one_token_ends_with_its_prompt_and_sends_no_cache():
    served = simulate(requests((0, 300, 1)), SPLIT, SplitPools())
    assert served.ttft == pytest.approx([0.300])
    assert served.e2e == pytest.approx([0.300])
    assert np.isnan(served.tbt_mean).all()


def test_prompts_share_an_iteration_up_to_the_limit_and_stall_tokens():
    one = Cluster((Pool(PHASES, 1),), KV, LINK)
    # the second and third come while the first is read: 1200 tokens in one iteration, 400 in the
    # next, because 1600 would be over the limit
    trace = requests((0, 100, 3), (0.01, 500, 1), (0.02, 700, 1), (0.03, 400, 1))
    served = simulate(trace, one, SharedPool(), prompt_limit=1500, record=True)
    assert [i.prompts for i in served.iterations] == [(0,), (1, 2), (3,)]
    # mixed: the first writes along, one more token to compute
    assert served.ttft + trace.arrival == pytest.approx([0.1, 1.301, 1.301, 1.702])
    assert served.e2e[0] == pytest.approx(1.702)
    assert served.tbt_max[0] == pytest.approx(1.201)
    waiting = simulate(trace, one, SharedPool(), prompt_limit=1500, batching="prompts first")
    assert waiting.ttft + trace.arrival == pytest.approx([0.1, 1.3, 1.3, 1.7])
    assert waiting.e2e[0] == pytest.approx(1.7 + 2 * 0.050)
    assert waiting.tbt_max[0] == pytest.approx(1.65)


def test_a_prompt_over_the_limit_goes_alone_and_whole():
    one = Cluster((Pool(PHASES, 1),), KV, LINK)
    served = simulate(requests((0, 5000, 1), (0, 10, 1)), one, SharedPool(), record=True)
    assert [i.prompts for i in served.iterations] == [(0,), (1,)]
    assert served.ttft == pytest.approx([5.0, 5.01])


def test_a_full_machine_lets_requests_wait_in_order():
    tight = Cluster((Pool(PHASES, 1, capacity=250),), KV, LINK)
    trace = requests((0, 100, 6), (0.01, 100, 101), (0.02, 30, 6))
    served = simulate(trace, tight, SharedPool(), record=True)
    # 106 + 201 tokens are more than 250: the second waits for the first to end, the small third
    # does not pass it
    assert [i.prompts for i in served.iterations if i.prompts] == [(0,), (1, 2)]
    assert served.ttft[1] + 0.01 == pytest.approx(0.1 + 5 * 0.050 + 0.130)


@given(trace=traces, chosen=clusters, batching=batchings)
def test_work_is_conserved(trace, chosen, batching):
    cluster, policy = chosen
    served = simulate(trace, cluster, policy, batching=batching, record=True)
    # no request is lost, none is served twice, and time runs forwards
    assert np.isfinite(served.e2e).all()
    assert (served.ttft > 0).all()
    assert (served.e2e >= served.ttft).all()
    read = [request for iteration in served.iterations for request in iteration.prompts]
    assert sorted(read) == list(range(len(trace)))
    assert sum(i.batch for i in served.iterations) == int((trace.output - 1).sum())
    # the machines were busy for just the length of their tasks, one task at a time
    for machine in range(len(served.busy)):
        own = [i for i in served.iterations if i.machine == machine]
        duration = 0.0
        for i in own:
            tokens = int(trace.prompt[list(i.prompts)].sum())
            reading = PHASES.prompt_time(tokens + i.batch) if tokens else 0.0
            writing = PHASES.token_time(i.batch, i.cached) if i.batch else 0.0
            assert i.end - i.start == pytest.approx(max(reading, writing))
            duration += max(reading, writing)
        assert served.busy[machine] == pytest.approx(duration)
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(own))
        # first come, first served, in every queue
        order = [request for i in own for request in i.prompts]
        assert order == sorted(order)
    again = simulate(trace, cluster, policy, batching=batching)
    for name in ("ttft", "tbt_mean", "tbt_max", "e2e", "token_machine"):
        np.testing.assert_array_equal(getattr(served, name), getattr(again, name))


@given(trace=traces)
def test_token_latencies_are_those_of_the_recorded_iterations(trace):
    cluster = Cluster((Pool(PHASES, 1),), KV, LINK)
    served = simulate(trace, cluster, SharedPool(), record=True)
    ends = np.array([i.end for i in served.iterations if i.batch])
    for request in range(len(trace)):
        first = trace.arrival[request] + served.ttft[request]
        last = trace.arrival[request] + served.e2e[request]
        times = np.concatenate([[first], ends[(ends > first + 1e-9) & (ends < last + 1e-9)]])
        assert len(times) == trace.output[request]
        if len(times) > 1:
            assert served.tbt_max[request] == pytest.approx(np.diff(times).max())
            assert served.tbt_mean[request] == pytest.approx(np.diff(times).mean())


def test_waiting_time_of_equal_prompts_is_that_of_an_m_d_1_queue():
    # Poisson arrivals, one server, service S: mean wait = rho S / (2 (1 - rho))
    rho, tokens, count = 0.6, 1000, 40_000
    service = PHASES.prompt_time(tokens)
    arrival = np.random.default_rng(0).exponential(service / rho, count).cumsum()
    trace = Trace(arrival, np.full(count, tokens), np.ones(count, dtype=int))
    cluster = Cluster((Pool(PHASES, 1),), KV, LINK)
    served = simulate(trace, cluster, SharedPool(), prompt_limit=tokens)
    # the standard error, by batches of 1000, is 1.5 %
    assert (served.ttft - service).mean() == pytest.approx(
        rho * service / (2 * (1 - rho)), rel=0.08
    )


def test_littles_law():
    # the number in the system, seen at random moments, is rate times time in it
    trace = poisson_trace(10, "coding", 4000, seed=1)
    cluster = Cluster((Pool(MEDIAN, 8, "prompt"), Pool(MEDIAN, 3, "token")), KV)
    served = simulate(trace, cluster, SplitPools())
    start, end = np.quantile(trace.arrival, [0.1, 0.9])
    inside = (trace.arrival >= start) & (trace.arrival < end)
    moments = np.random.default_rng(2).uniform(start, end, 4000)
    leaving = np.sort(trace.arrival + served.e2e)
    present = np.searchsorted(trace.arrival, moments) - np.searchsorted(leaving, moments)
    rate = inside.sum() / (end - start)
    assert present.mean() == pytest.approx(rate * served.e2e[inside].mean(), rel=0.05)


MEDIAN = MeasuredPhases.of({128: 0.06, 2048: 0.27, 8192: 1.5}, {1: 0.045, 64: 0.07})


def test_an_overloaded_queue_grows_linearly():
    service, count = PHASES.prompt_time(1000), 2000
    arrival = np.random.default_rng(0).exponential(service / 1.5, count).cumsum()
    trace = Trace(arrival, np.full(count, 1000), np.ones(count, dtype=int))
    served = simulate(trace, Cluster((Pool(PHASES, 1),)), SharedPool(), prompt_limit=1000)
    assert served.utilisation[0] == pytest.approx(1, abs=0.01)
    # each request finds a third of a service time more work than the one before it
    slope = np.polyfit(np.arange(count), served.ttft, 1)[0]
    assert slope == pytest.approx(service * (1 - 1 / 1.5), rel=0.15)
    halves = served.ttft[: count // 2].mean(), served.ttft[count // 2 :].mean()
    assert halves[1] / halves[0] == pytest.approx(3, rel=0.2)


def test_the_shortest_queue_is_joined_and_the_first_of_equals():
    trace = requests((0, 500, 1), (0.001, 100, 1), (0.002, 50, 1), (0.003, 10, 1), (0.004, 10, 1))
    three = Cluster((Pool(PHASES, 3),))
    served = simulate(trace, three, SharedPool())
    assert served.prompt_machine.tolist() == [0, 1, 2, 2, 2]
    same = simulate(requests(*[(0, 100, 1)] * 5), three, SharedPool())
    assert same.prompt_machine.tolist() == [0, 1, 2, 0, 1]

    class Machine:
        def __init__(self, number, load):
            self.number, self.load = number, load

    machines = [Machine(2, 1.0), Machine(0, 2.0), Machine(1, 1.0)]
    assert shortest(machines, lambda machine: machine.load).number == 1  # type: ignore[arg-type]


def test_full_pools_borrow_and_give_back():
    cluster = Cluster((Pool(PHASES, 1, "prompt"), Pool(PHASES, 1, "token")), KV, LINK)
    burst = [(0.001 * n, 400, 2) for n in range(6)]
    trace = requests(*burst, *[(60 + 10 * n, 400, 2) for n in range(3)])
    mixed = simulate(trace, cluster, MixedPools(prompt_limit=800))
    assert set(mixed.prompt_machine[:6]) == {0, 1}  # the token machine read some of the burst
    assert mixed.prompt_machine[6:].tolist() == [0, 0, 0]  # and is back in its pool
    assert mixed.token_machine[6:].tolist() == [1, 1, 1]
    split = simulate(trace, cluster, SplitPools())
    assert split.prompt_machine.tolist() == [0] * 9
    assert mixed.ttft[:6].max() < split.ttft[:6].max()
    unlimited = simulate(trace, cluster, MixedPools(prompt_limit=10**9))
    np.testing.assert_array_equal(unlimited.e2e, split.e2e)  # nothing borrowed: two plain pools


def test_a_full_token_pool_borrows_a_prompt_machine():
    cluster = Cluster((Pool(PHASES, 2, "prompt", 900), Pool(PHASES, 1, "token", 900)), KV, LINK)
    trace = requests(*[(0.5 * n, 300, 100) for n in range(4)])
    served = simulate(trace, cluster, MixedPools())
    assert served.token_machine.tolist()[:2] == [2, 2]
    assert set(served.token_machine[2:]) <= {0, 1}


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_with_an_infinite_link_two_pools_never_stall_tokens_as_one_does(seed):
    """A step never waits longer than for the step that is running; a shared machine's waits for
    whole prompts."""
    trace = poisson_trace(12, "conversation", 300, seed)
    trace = Trace(trace.arrival, np.maximum(trace.prompt, 150), trace.output)
    link = Link(bandwidth=float("inf"))
    split = Cluster((Pool(FLAT, 20, "prompt"), Pool(FLAT, 4, "token")), KV, link)
    two = simulate(trace, split, SplitPools())
    several = trace.output > 1
    assert two.tbt_max[several].max() <= 2 * 0.050 + 1e-9
    one = simulate(trace, Cluster((Pool(FLAT, 24),), KV, link), SharedPool())
    assert np.nanpercentile(two.tbt_max, 99) <= np.nanpercentile(one.tbt_max, 99)
    assert np.nanpercentile(two.tbt_mean, 99) <= np.nanpercentile(one.tbt_mean, 99)


def test_the_result_is_a_table():
    table = simulate(requests((0, 10, 3), (1, 20, 1)), SPLIT, SplitPools()).table()
    assert list(table.columns) == [
        "arrival", "prompt", "output", "ttft", "tbt_mean", "tbt_max", "e2e",
        "prompt_machine", "token_machine",
    ]  # fmt: skip
    assert len(table) == 2


def test_a_machine_that_only_reads_needs_memory_for_the_prompt_alone():
    trace = requests((0, 100, 400), (0.3, 120, 1))
    small, large = Pool(PHASES, 1, "prompt", 120), Pool(PHASES, 1, "token", 500)
    smaller, cramped = replace(large, capacity=499), replace(small, capacity=119)
    for policy in (SplitPools(), MixedPools()):
        served = simulate(trace, Cluster((small, large), KV, LINK), policy)
        assert np.isfinite(served.e2e).all()
        assert served.prompt_machine[0] == 0
        assert served.token_machine[0] == 1
        with pytest.raises(InputError, match=r"500 tokens does not fit .* holds 499"):
            simulate(trace, Cluster((small, smaller), KV, LINK), policy)
    with pytest.raises(InputError, match=r"120 tokens does not fit .* holds 119"):
        simulate(trace, Cluster((cramped, large), KV, LINK), SplitPools())


def test_large_requests_go_to_the_machines_that_hold_them():
    cluster = Cluster((Pool(PHASES, 2, capacity=150), Pool(PHASES, 1, capacity=2000)), KV, LINK)
    served = simulate(requests((0, 100, 3), (0.01, 900, 3), (0.02, 900, 3)), cluster, SharedPool())
    assert served.token_machine.tolist() == [0, 2, 2]


def test_what_cannot_be_served_is_refused():
    trace = requests((0, 100, 10))
    with pytest.raises(InputError, match="110 tokens does not fit"):
        simulate(trace, Cluster((Pool(PHASES, 1, capacity=50),)), SharedPool())
    with pytest.raises(InputError, match="role is 'both'"):
        simulate(trace, SPLIT, SharedPool())
    with pytest.raises(InputError, match="role is 'prompt'"):
        simulate(trace, SHARED, SplitPools())
    with pytest.raises(InputError, match="needs machines"):
        Cluster((Pool(PHASES, 0),))
    with pytest.raises(InputError, match="prompt_limit"):
        simulate(trace, SHARED, SharedPool(), prompt_limit=0)
    with pytest.raises(InputError, match="bandwidth"):
        Link(bandwidth=0)
