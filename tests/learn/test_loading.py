"""Which rows which process reads: each once, in the sampler's order, with stand-ins for nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from tokenry.learn.loading import STAND_IN, CollateCounted, ProcessBatches, Rows


class Sequential(SequentialSampler):
    """In order, so that no process has to tell the others."""


def batches(rows, size, processes=1, **options):
    return [
        ProcessBatches(
            Sequential(range(rows)), size, processes=processes, process=process, **options
        )
        for process in range(processes)
    ]


SIZES = st.integers(1, 4)


@given(st.integers(1, 30), SIZES, SIZES, SIZES, SIZES)
def test_every_row_counts_once_a_round_and_all_processes_take_the_same_steps(
    rows, size, processes, accumulate, repeats
):
    samplers = batches(rows, size, processes, accumulate=accumulate, repeats=repeats)
    found = [list(sampler) for sampler in samplers]
    assert {len(own) for own in found} == {len(sampler) for sampler in samplers}
    counted = [row for own in found for batch in own for row in batch if row >= 0]
    assert sorted(counted) == sorted(list(range(rows)) * repeats)
    for own in found:
        for batch in own:
            assert len(batch) <= size
            assert batch[0] >= 0 or len(batch) == 1  # a stand-in is alone
            assert all(-rows <= row < rows for row in batch)
    if repeats > 1:
        assert len(found[0]) % (accumulate * repeats) == 0


@given(st.integers(1, 30), SIZES, SIZES, SIZES, st.integers(2, 3))
def test_rounds_of_a_step_are_the_same_batches(rows, size, processes, accumulate, repeats):
    once = batches(rows, size, processes, accumulate=accumulate)
    often = batches(rows, size, processes, accumulate=accumulate, repeats=repeats)
    for one, many in zip(once, often, strict=True):
        own, drawn = list(one), list(many)
        for step in range(0, len(drawn), accumulate * repeats):
            first = drawn[step : step + accumulate]
            assert drawn[step : step + accumulate * repeats] == first * repeats
        rounds = [
            batch
            for step in range(0, len(drawn), accumulate * repeats)
            for batch in drawn[step : step + accumulate]
        ]
        assert [batch for batch in rounds if batch[0] >= 0] == [b for b in own if b[0] >= 0]


@given(st.integers(1, 30), SIZES, SIZES)
def test_full_steps_are_shared_out_as_accelerate_does(rows, size, processes):
    from accelerate.data_loader import BatchSamplerShard

    rows -= rows % (size * processes)
    for process, sampler in enumerate(batches(rows, size, processes)):
        plain = BatchSampler(range(rows), size, drop_last=False)
        theirs = BatchSamplerShard(plain, processes, process)
        assert list(sampler) == list(theirs)


def test_drop_last_leaves_out_what_does_not_fill_a_batch_of_every_process():
    first, second = batches(11, 2, 2, drop_last=True)
    assert list(first) == [[0, 1], [4, 5]]
    assert list(second) == [[2, 3], [6, 7]]
    assert len(first) == 2


def test_the_smallest_step_of_the_first_process():
    assert batches(11, 4, 2)[0].smallest_step() == 3
    assert batches(13, 4, 2)[0].smallest_step() == 4
    assert batches(8, 4, 2)[0].smallest_step() == 4
    assert batches(9, 4, 2, drop_last=True)[0].smallest_step() == 4


def test_fields_of_a_stand_in_say_so():
    rows = Rows([{"x": 1}, {"x": 2}])
    collate = CollateCounted(lambda rows: {"x": torch.tensor([row["x"] for row in rows])})
    assert collate([rows[0], rows[1]])["x"].tolist() == [1, 2]
    assert STAND_IN not in collate([rows[0]])
    fields = collate([rows[~1]])
    assert fields["x"].tolist() == [2]
    assert fields[STAND_IN].tolist() == [True]
