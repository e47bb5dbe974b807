"""Trade-offs: two quantities along a way, and how far one method's ways lie above another's.

A path is a list of points (x, y): what a training run measured on its way, say (KL, reward).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Path = Sequence[Sequence[float]]


def crossing(path: Path, x: float) -> float | None:
    """y where the path first passes x, linear between its points; None if it never does."""
    for (x0, y0), (x1, y1) in pairwise(path):
        if min(x0, x1) <= x <= max(x0, x1) and x0 != x1:
            return y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    return None


def gap_at_equal(
    ours: Sequence[Path], theirs: Sequence[Path], shares: Sequence[float] | None = None
) -> float:
    """Mean difference of two methods' highest y at equal x.

    Args:
        ours: paths of each method, one for each setting that it was tried with; at each x its best
            path counts.
        theirs: as `ours`.
        shares: at which x: shares of the range of x that both methods passed; by default nine of
            equal distance, from 0 to 1.

    Returns:
        The mean over those x, ours minus theirs; 0 where no x was passed by both.
    """
    methods = (ours, theirs)
    low = max(min(path[0][0] for path in method) for method in methods)
    high = min(max(x for path in method for x, _ in path) for method in methods)
    gaps = []
    for share in shares or [level / 8 for level in range(9)]:
        x = low + (high - low) * share
        passed = [
            [y for path in method if (y := crossing(path, x)) is not None] for method in methods
        ]
        if all(passed):
            gaps.append(max(passed[0]) - max(passed[1]))
    return sum(gaps) / len(gaps) if gaps else 0.0


def hypervolume(points: Path, worst: Sequence[float]) -> float:
    """The area that points (x, y) dominate above the worst values of both."""
    area, height = 0.0, worst[1]
    for x, y in sorted([(x, y) for x, y in points], reverse=True):
        # from the right: a point adds what it rises above those further right
        area += max(x - worst[0], 0.0) * max(y - height, 0.0)
        height = max(height, y)
    return area
