"""Masked songs: what is masked, what is asked, and what the decoder is given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenry.core.errors import InputError, ShapeError
from tokenry.learn.recipes.sequence_to_sequence.song_mass import masked_spans, song_mass_example

MASK, START = 1, 2
WORDS = [range(10, 40)]
NOTES = [range(10, 25), range(30, 40)]


def example(length, seed, kinds=WORDS, **options):
    generator = torch.Generator().manual_seed(seed)
    pieces = [list(kind) for kind in kinds]
    tokens = torch.tensor(
        [
            pieces[place % len(pieces)][
                int(torch.randint(len(pieces[place % len(pieces)]), (), generator=generator))
            ]
            for place in range(length)
        ]
    )
    sentences = torch.arange(length) // 8
    options = {"mask": MASK, "start": START, "kinds": kinds, "generator": generator} | options
    return tokens, song_mass_example(tokens, sentences, **options)


@given(st.integers(1, 120), st.integers(0, 99), st.sampled_from([0.3, 0.5, 1.0]))
def test_targets_are_the_tokens_at_the_masked_positions(length, seed, ratio):
    tokens, made = example(length, seed, ratio=ratio, decoder_noise=0.0)
    assert torch.equal(made.target, tokens[made.positions])
    assert torch.equal(made.target_sentences, made.source_sentences[made.positions])
    before = [START if p == 0 else int(tokens[p - 1]) for p in made.positions.tolist()]
    assert made.decoder_input.tolist() == before
    kept = torch.ones(length, dtype=torch.bool)
    kept[made.positions] = False
    assert torch.equal(made.source[kept], tokens[kept])
    assert len(set(made.positions.tolist())) == len(made.positions)


@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 12))
def test_notes_are_masked_whole_and_alike(notes, seed, span):
    tokens, made = example(2 * notes, seed, NOTES, span=span)
    places = made.positions.view(-1, 2)
    assert (places[:, 0] % 2 == 0).all()
    assert torch.equal(places[:, 1], places[:, 0] + 1)
    hidden = (made.source == MASK).view(-1, 2)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    pitches, durations = made.source.view(-1, 2).unbind(1)
    assert all(p == MASK or p in NOTES[0] for p in pitches.tolist())
    assert all(d == MASK or d in NOTES[1] for d in durations.tolist())
    assert torch.equal(made.target, tokens[made.positions])


@given(st.integers(1, 300), st.sampled_from([0.3, 0.5, 0.9]), st.integers(1, 20), st.integers(1, 2))
def test_one_span_in_each_segment(groups, ratio, span, group):
    generator = torch.Generator().manual_seed(groups)
    length = groups * group
    spans = masked_spans(length, ratio, span, group, generator)
    segments = min(groups, max(1, round(length * ratio / span)))
    assert len(spans) == segments
    size = groups // segments * group
    for number, (first, last) in enumerate(spans):
        end = length if number == segments - 1 else (number + 1) * size
        assert number * size <= first < last <= end
        assert (last - first) // group == max(1, round(ratio * (end - number * size) / group))


def test_half_of_a_long_song_is_masked_most_of_it_by_the_mask():
    masked, shown, total = 0, 0, 0
    changed = 0
    for seed in range(200):
        tokens, made = example(100, seed)
        total += 100
        masked += len(made.positions)
        shown += int((made.source[made.positions] == MASK).sum())
        changed += int((made.source != tokens).sum())
    assert masked == total / 2  # 5 segments of 20, in each 10
    # 10,000 masked positions: six standard errors are 0.024
    assert abs(shown / masked - 0.8) < 0.024
    # a replacement is the token itself once in 30
    assert abs(changed / masked - (0.8 + 0.1 * 29 / 30)) < 0.024


def test_spans_begin_at_the_edges_as_often_as_the_law_says():
    generator = torch.Generator().manual_seed(0)
    starts = [masked_spans(20, 0.5, 10, 1, generator)[0][0] for _ in range(4000)]
    # 0.2 + 0.6 / 11 each; six standard errors are 0.042
    for edge in (0, 10):
        assert abs(starts.count(edge) / 4000 - (0.2 + 0.6 / 11)) < 0.042


def test_decoder_inputs_are_replaced_at_the_given_rate():
    different = total = 0
    for seed in range(100):
        tokens, made = example(60, seed, NOTES, decoder_noise=0.4)
        before = torch.cat([torch.tensor([START]), tokens[:-1]])[made.positions]
        different += int((made.decoder_input != before).sum())
        total += len(before)
        odd = made.positions % 2 == 1  # behind a pitch: a pitch or the mask
        allowed = {MASK, *NOTES[0]}
        assert set(made.decoder_input[odd].tolist()) <= allowed
    # half of the replacements are one of 15 pitches or 10 durations, now and then the same
    assert abs(different / total - 0.4 * (1 - 0.5 * (1 / 15 + 1 / 10) / 2)) < 0.054


def test_the_same_generator_makes_the_same_example():
    one, two = example(50, 7)[1], example(50, 7)[1]
    assert torch.equal(one.source, two.source)
    assert torch.equal(one.decoder_input, two.decoder_input)


def test_impossible_songs_are_named():
    with pytest.raises(InputError, match="3 tokens are not one or more groups of 2"):
        example(3, 0, NOTES)
    with pytest.raises(InputError, match="0 tokens"):
        example(0, 0)
    with pytest.raises(InputError, match="ratio is 0"):
        example(4, 0, ratio=0.0)
    with pytest.raises(ShapeError, match=r"\[4\] and \[3\]"):
        song_mass_example(
            torch.zeros(4, dtype=torch.long),
            torch.zeros(3, dtype=torch.long),
            mask=1,
            start=2,
            kinds=WORDS,
            generator=torch.Generator(),
        )
