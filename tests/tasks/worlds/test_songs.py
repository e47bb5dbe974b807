"""Songs: that every word is sung as its class says."""

import random

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.songs import EOS, FIRST, MOVES, PAD, SEP, Song, SongBatch, Songs


def test_words_are_sung_on_the_notes_of_their_class():
    world, chance = Songs(astray=0.0), random.Random(0)
    for _ in range(100):
        song = world.draw(chance)
        assert len(song.words) == len(song.notes) == world.sentences
        before = None
        for sentence, sung in zip(song.words, song.notes, strict=True):
            assert world.shortest <= len(sentence) <= world.longest
            assert [place for *_, place in sung] == sorted(place for *_, place in sung)
            for place, word in enumerate(sentence):
                notes = [(pitch, duration) for pitch, duration, of in sung if of == place]
                moves = MOVES[(word - FIRST) % len(MOVES)]
                assert len(notes) == len(moves)
                for (pitch, duration), move in zip(notes, moves, strict=True):
                    assert pitch in world.pitch_ids
                    assert duration in world.duration_ids
                    if before is not None:
                        assert (pitch - before - move) % world.pitches == 0
                    before = pitch
                durations = [duration - world.duration_ids[0] for _, duration in notes]
                assert durations[:-1] == [0] * (len(notes) - 1)
                assert durations[-1] in (1, 2)


def test_some_notes_go_astray_and_ids_stay_in_the_vocabularies():
    world, chance = Songs(astray=0.5), random.Random(0)
    songs = [world.draw(chance) for _ in range(50)]
    words = [word for song in songs for sentence in song.words for word in sentence]
    notes = [note for song in songs for sung in song.notes for note in sung]
    assert set(words) <= set(world.word_ids)
    assert max(duration for _, duration, _ in notes) < world.melody_size
    assert {pitch for pitch, *_ in notes} == set(world.pitch_ids)


def test_a_seed_makes_a_song_and_impossible_ones_are_refused():
    assert Songs().draw(random.Random(3)) == Songs().draw(random.Random(3))
    with pytest.raises(InputError, match="5 to 4 words"):
        Songs(shortest=5)


def test_a_batch_has_the_word_and_sentence_of_every_token():
    one = Song(words=((7, 8), (9,)), notes=(((5, 17, 0), (6, 18, 1)), ((5, 19, 0),)))
    two = Song(words=((7,), (8,)), notes=(((6, 17, 0),), ((6, 18, 0),)))
    batch = SongBatch.of([one, two])
    assert batch.source.tolist() == [[7, 8, SEP, 9, SEP, EOS], [7, SEP, 8, SEP, EOS, PAD]]
    assert batch.source_words.tolist() == [[0, 1, -1, 100, -1, -1], [0, -1, 100, -1, -1, -1]]
    assert batch.source_sentences.tolist() == [[0, 0, 0, 1, 1, -1], [0, 0, 1, 1, -1, -1]]
    assert batch.target.tolist() == [
        [5, 17, 6, 18, SEP, 5, 19, SEP, EOS],
        [6, 17, SEP, 6, 18, SEP, EOS, PAD, PAD],
    ]
    assert batch.target_words[0].tolist() == [0, 0, 1, 1, -2, 100, 100, -2, -2]
    assert batch.target_sentences[1].tolist() == [0, 0, 0, 1, 1, 1, -2, -2, -2]
    second = batch.take(torch.tensor([1]))
    assert second.target.tolist() == batch.target[1:].tolist()
    assert one.lyrics.tolist() == [[7, 8, 9], [0, 0, 1]]
    assert one.melody.tolist() == [[5, 17, 6, 18, 5, 19], [0, 0, 0, 0, 1, 1]]
