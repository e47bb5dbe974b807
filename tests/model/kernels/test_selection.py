"""The machine code of a selection against its definition in torch."""

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.model.attention.masks import GivenMask
from tokenry.model.cache import selection
from tokenry.model.cache.tokenselect import TokenSelect

compiled = pytest.importorskip("tokenry.model.kernels.selection", reason="numba is not installed")


@given(
    rows=st.integers(1, 2),
    heads=st.integers(1, 3),
    group=st.integers(1, 4),
    size=st.sampled_from([4, 64, 80, 128]),
    length=st.integers(1, 700),
    data=st.data(),
)
def test_votes_are_the_softmax_of_the_products(rows, heads, group, size, length, data):
    begin = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(begin + 1, length))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    query = torch.randn(rows, heads * group, size, generator=generator)
    keys = (3 * torch.randn(rows, heads, length, size, generator=generator)).to(dtype)
    score, votes = compiled.vote(query, keys, begin, end)
    expected = query.double().unflatten(1, (heads, group)) @ keys.double().mT
    torch.testing.assert_close(score.double(), expected, atol=1e-4, rtol=1e-5)
    shares = expected[..., begin:end].softmax(-1)
    torch.testing.assert_close(votes.double(), shares.sum((1, 2)), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(votes.sum(-1), torch.full((rows,), float(heads * group)))


def test_scores_far_apart_leave_one_head_one_vote():
    keys = torch.tensor([[-1e4, 0.0, 1e4, 1e4]]).view(1, 1, 4, 1)
    score, votes = compiled.vote(torch.ones(1, 1, 1), keys, 0, 4)
    assert score.flatten().tolist() == [-1e4, 0.0, 1e4, 1e4]
    torch.testing.assert_close(votes, torch.tensor([[0, 0, 0.5, 0.5]]), atol=1e-30, rtol=1e-6)


@given(
    values=st.lists(
        st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 2.0**100, width=32)),
        min_size=1,
        max_size=50,
    ),
    data=st.data(),
)
def test_the_best_are_the_largest_and_of_equal_ones_the_first(values, data):
    k = data.draw(st.integers(0, len(values)))
    votes = torch.tensor([values, values[::-1]])
    for row, found in zip(votes, compiled.best(votes, k), strict=True):
        ranked = sorted(range(len(values)), key=lambda column: (-float(row[column]), column))
        assert found.tolist() == sorted(ranked[:k])


def test_the_last_bits_of_a_vote_decide():
    near = torch.tensor([1.0, 1.0])
    near[1] = torch.nextafter(near[1], torch.tensor(2.0))
    assert compiled.best(near[None], 1).tolist() == [[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_layer_attends_as_it_does_without_machine_code(monkeypatch, dtype, softcap):
    generator = torch.Generator().manual_seed(3)

    def drawn(heads, length):
        return torch.randn(2, heads, length, 16, generator=generator).to(dtype)

    steps = [(drawn(6, n), drawn(2, n), drawn(2, n)) for n in (300, 1, 5, 1, 1)]
    outputs = []
    for module in (compiled, None):
        monkeypatch.setattr(selection, "_compiled", lambda module=module: module)
        layer = TokenSelect(n_init=2, k=30, n_local=8, reuse=2).layer()
        for query, key, value in steps:
            layer.update(key, value)
            mask = GivenMask(None, query)
            options = {"scaling": 0.25, "softcap": softcap}
            outputs.append(layer.attend(query, layer.keys, layer.values, mask, **options))
            layer.waiting = False
    for ours, plain in zip(outputs[:5], outputs[5:], strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, plain)


def test_what_machine_code_cannot_read_is_left_to_torch():
    keys = torch.randn(1, 2, 8, 4)
    assert selection.compiled_for(keys) is compiled
    assert selection.compiled_for(keys.bfloat16()) is compiled
    for other in (keys.double(), keys.half(), keys.mT, keys.to("meta")):
        assert selection.compiled_for(other) is None


def test_threads_may_call_at_the_same_time():
    keys = torch.randn(1, 2, 600, 64, generator=torch.Generator().manual_seed(0))
    query = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1))
    expected = compiled.vote(query, keys, 3, 590)[1]
    found = {}

    def work(number):
        for _ in range(20):
            found[number] = compiled.vote(query, keys, 3, 590)[1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(votes, expected) for votes in found.values())
    assert len(found) == 4


IN_A_PROCESS_OF_ITS_OWN = """
import torch
torch.set_num_threads(1)
from tokenry.model.kernels import selection as compiled
for _ in range(2):
    compiled.vote(torch.ones(1, 2, 4), torch.ones(1, 1, 8, 4), 1, 7)
    compiled.best(torch.ones(1, 8), 3)
    assert torch.get_num_threads() == 1, torch.get_num_threads()
"""


def test_the_number_of_torchs_threads_stays():
    """numba sets the threads of an OpenMP library, which may be torch's, when it starts."""
    found = subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], capture_output=True)
    assert found.returncode == 0, found.stderr.decode()
