"""Songs: that every word is sung as its class says."""

import random

import pytest

from tokenry.core.errors import InputError
from tokenry.tasks.worlds.songs import FIRST, MOVES, Songs


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
