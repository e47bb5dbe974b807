"""Song benches: attention on a note's own word is a perfect alignment, on others a bad one."""

import random

import torch

from tokenry.lab.songs import SongBench, song_f1
from tokenry.tasks.worlds.songs import SongBatch, Songs


def test_attention_to_the_own_word_is_a_perfect_alignment():
    songs = [Songs(shortest=3).draw(random.Random(n)) for n in range(4)]
    batch = SongBatch.of(songs)
    own = (batch.target_words[:, :, None] == batch.source_words[:, None]).float()
    reverse = own.flip(1)
    for row in range(len(songs)):
        assert song_f1(own[row], batch, row) == 1.0
        assert song_f1(reverse[row], batch, row) < 1.0


def test_a_bench_draws_the_same_songs_again_and_constraints_are_learned_differently():
    bench = SongBench(1, paired=4, unpaired=4, tested=3, pretraining=1, fine_tuning=2, batch=2)
    assert bench.songs() == bench.songs()
    assert [len(part) for part in bench.songs()] == [4, 4, 4, 3]
    modules = bench.fresh()
    free, bound = bench.taught(modules), bench.taught(modules, constrained=True)
    assert not torch.equal(free.cost, bound.cost)
    assert torch.equal(free.cost, bench.taught(modules).cost)
