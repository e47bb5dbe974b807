"""Song-level MASS: masked sequence-to-sequence pre-training on whole songs, one span per segment.

A song of n tokens is cut into G = max(1, round(n ρ / span)) segments of ⌊n / G⌋ tokens, the last
one taking the rest. In each segment [s, e) one span of ℓ = max(1, round(ρ (e - s))) tokens is
masked; it begins at s with probability 0.2, at e - ℓ with probability 0.2, else anywhere from s to
e - ℓ alike.

    source    the song; a masked position holds `mask` (0.8), another token of its kind (0.1) or
              itself (0.1)
    target    the masked spans, one behind the other
    decoder   for each target token the one before it in the song (`start` at the song's beginning),
              replaced by `mask` or another token with a small probability

so that the decoder needs context from the whole song. A melody's notes are groups of tokens (pitch,
duration): nothing ever cuts a group, and a group is masked alike.

Source: SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint (arXiv
2012.05168), section 3.2. How often decoder inputs are replaced is not published: 0.1 is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, ShapeError


@dataclass(frozen=True)
class MassExample:
    """source [n] with source_sentences [n]; decoder_input, target, target_sentences and positions
    (in the song) [m], one entry for each masked token."""

    source: Tensor
    decoder_input: Tensor
    target: Tensor
    source_sentences: Tensor
    target_sentences: Tensor
    positions: Tensor


def song_mass_example(
    tokens: Tensor,
    sentence_ids: Tensor,
    *,
    mask: int,
    start: int,
    kinds: Sequence[Sequence[int]],
    ratio: float = 0.5,
    span: int = 10,
    decoder_noise: float = 0.1,
    generator: torch.Generator,
) -> MassExample:
    """One song masked.

    Args:
        tokens: [n], a song without the marks between its sentences.
        sentence_ids: [n], the number of each token's sentence.
        kinds: for each token of a group, the ids from which replacements are drawn: one list for
            words, two for notes of pitch and duration.
        ratio: share of tokens to be masked, in (0, 1].
        span: tokens of a masked span, about.
        decoder_noise: share of decoder inputs that are replaced.
    """
    if tokens.ndim != 1 or tokens.shape != sentence_ids.shape:
        raise ShapeError(
            f"tokens and sentence_ids must be [n] both, not {list(tokens.shape)} and "
            f"{list(sentence_ids.shape)}"
        )
    group = len(kinds)
    if not group or len(tokens) % group or not len(tokens):
        raise InputError(f"{len(tokens)} tokens are not one or more groups of {group}")
    in_range("ratio", ratio, "(0, 1]")
    in_range("span", span, "[1, inf)")
    in_range("decoder_noise", decoder_noise, "[0, 1]")
    spans = masked_spans(len(tokens), ratio, span, group, generator)
    positions = torch.cat([torch.arange(first, last) for first, last in spans])
    hidden = torch.zeros(len(tokens) // group, dtype=torch.bool)
    hidden[positions // group] = True
    previous = torch.cat([torch.tensor([start]), tokens[:-1]])
    fate = torch.rand(len(hidden), generator=generator).repeat_interleave(group)
    hidden = hidden.repeat_interleave(group)
    others = replacements(len(tokens), kinds, generator)
    source = torch.where(hidden & (fate < 0.8), mask, tokens)
    source = torch.where(hidden & (fate >= 0.8) & (fate < 0.9), others, source)
    # A decoder input stands one place behind the token that it repeats.
    others = torch.cat([previous[:1], replacements(len(tokens), kinds, generator)[:-1]])
    fate = torch.rand(len(tokens), generator=generator)
    noisy = torch.where(fate < decoder_noise / 2, mask, previous)
    noisy = torch.where((fate >= decoder_noise / 2) & (fate < decoder_noise), others, noisy)
    return MassExample(
        source,
        noisy[positions],
        tokens[positions],
        sentence_ids,
        sentence_ids[positions],
        positions,
    )


def masked_spans(
    length: int, ratio: float, span: int, group: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """The masked [first, last) of each segment, multiples of `group`; all are groups below."""
    groups = length // group
    segments = min(groups, max(1, round(length * ratio / span)))
    size, spans = groups // segments, []
    for segment in range(segments):
        begin = segment * size
        end = groups if segment == segments - 1 else begin + size
        masked = max(1, round(ratio * (end - begin)))
        fate = float(torch.rand((), generator=generator))
        first = begin if fate < 0.2 else end - masked
        if fate >= 0.4:
            first = int(torch.randint(begin, end - masked + 1, (), generator=generator))
        spans.append((first * group, (first + masked) * group))
    return spans


def replacements(length: int, kinds: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
    """[length]: at each place a random id of its kind."""
    rows = [
        torch.tensor(list(ids))[
            torch.randint(len(ids), (length // len(kinds),), generator=generator)
        ]
        for ids in kinds
    ]
    return torch.stack(rows, 1).flatten()
