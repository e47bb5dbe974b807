"""Servers in one pool or in two: the pools, and the best division against trying them all."""

import pytest

from tokenry.core.errors import InputError
from tokenry.serving.divisions import Servers
from tokenry.serving.phases import MACHINES, SHAPES
from tokenry.serving.policies import SplitPools
from tokenry.serving.targets import SLO, max_rate_under_slo
from tokenry.serving.trace import poisson_trace

SERVERS = Servers(SHAPES["llama2-70b"], MACHINES["A100"], 4)
TRACE = poisson_trace(1.0, "coding", 200, seed=1)


def test_pools_have_all_servers():
    (both,) = SERVERS.cluster().pools
    assert (both.count, both.role) == (4, "both")
    prompt, token = SERVERS.cluster(3).pools
    assert (prompt.count, prompt.role, token.count, token.role) == (3, "prompt", 1, "token")
    assert SERVERS.cluster().kv_bytes == SHAPES["llama2-70b"].kv_bytes


def test_the_best_division_is_the_best_of_all():
    rates = [
        max_rate_under_slo(TRACE, SERVERS.cluster(n), SplitPools(), SLO(), SERVERS.alone)
        for n in (1, 2, 3)
    ]
    best, prompt_servers = SERVERS.best_division(TRACE, SLO(), SplitPools())
    assert best == pytest.approx(max(rates), rel=0.03)  # both are bisected to 2 %
    assert rates[prompt_servers - 1] == pytest.approx(max(rates), rel=0.03)
    shared = SERVERS.shared_rate(TRACE, SLO(), "mixed")
    assert 0 < shared < best


@pytest.mark.parametrize("prompt_servers", [0, 4])
def test_a_division_leaves_no_pool_empty(prompt_servers):
    with pytest.raises(InputError, match="prompt_servers"):
        SERVERS.cluster(prompt_servers)


def test_one_server_cannot_be_divided():
    with pytest.raises(InputError, match="count"):
        Servers(SHAPES["llama2-70b"], MACHINES["A100"], 1)
