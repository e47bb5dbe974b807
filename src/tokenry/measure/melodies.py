"""Melodies: how alike generated ones are to reference ones.

    similarity   Σ_bins min(h_gen, h_ref) of the normalised histograms of pitches (or of durations),
                 in [0, 1], averaged over songs
    distance     dynamic time warping of the two pitch series, one value a beat, each with its mean
                 taken off; the sum of |difference| along the best path, over the generated length

Source: SongMASS: Automatic Song Writing with Pre-training and Alignment Constraint (arXiv
2012.05168), section 4.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from tokenry.core.errors import InputError


def histogram_similarity(generated: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """The overlap of two songs' histograms, of any values: 1 if they are the same."""
    if not len(generated) or not len(reference):
        raise InputError(
            f"a song of {len(generated)} values and one of {len(reference)} have no overlap: both "
            "need at least one"
        )
    left, right = Counter(generated), Counter(reference)
    shares = (min(left[v] / len(generated), right[v] / len(reference)) for v in left)
    return sum(shares)


def melody_distance(generated: Sequence[float], reference: Sequence[float]) -> float:
    """The warped distance of two pitch series, a value for each beat; 0 if one is the other, also
    transposed or with notes held longer as long as the means agree."""
    if not len(generated) or not len(reference):
        raise InputError("a melody without a beat has no distance to another")
    left, right = (np.asarray(side, np.float64) for side in (generated, reference))
    cost = np.abs((left - left.mean())[:, None] - (right - right.mean()))
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    # Along each rising diagonal i + j = d nothing depends on its own: one step of arrays.
    for d in range(2, rows + columns + 1):
        i = np.arange(max(1, d - columns), min(rows, d - 1) + 1)
        j = d - i
        before = np.minimum(np.minimum(total[i - 1, j], total[i, j - 1]), total[i - 1, j - 1])
        total[i, j] = cost[i - 1, j - 1] + before
    return float(total[rows, columns]) / rows
