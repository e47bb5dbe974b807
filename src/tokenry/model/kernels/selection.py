"""A selection as machine code: every head's votes for the cached keys, and the k best of them.

What torch does in a dozen passes over [heads, N] happens here while a block of keys is in the
processor's cache: the keys are read once, at the memory's speed. The best of n votes are found by
their bits, without sorting. numba compiles it at first use (some ten seconds, kept on disk), for
processors, float32 and bfloat16.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload
from numpy import float32, int32, uint32
from torch import Tensor

from tokenry.model.kernels.machine_code import ONLY_PRANGE, run

BLOCK = 256  # keys of a head at a time
WIDTH = 64  # of a loop whose length the compiler is to know: it divides most heads' size
LOWEST = float32(-1e30)


def vote(query: Tensor, keys: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """`selection.vote`, for contiguous keys."""
    B, heads, N, _ = keys.shape
    grouped = query.float().unflatten(1, (heads, -1)).contiguous()
    score = torch.empty(*grouped.shape[:3], N)
    largest, mass = torch.empty(2, *grouped.shape[:3], -(-N // BLOCK))
    votes = torch.empty(B, end - begin)
    _run(_vote, grouped, keys, begin, end, score, largest, mass, votes)
    return score, votes


def best(votes: Tensor, k: int) -> Tensor:
    """`selection.best`."""
    column = torch.empty(len(votes), k, dtype=torch.long)
    _run(_best, votes.contiguous(), column)
    return column


def _run(function: Any, *arguments: Any) -> None:
    run(function, *(_array(x) if isinstance(x, Tensor) else x for x in arguments))


def _array(states: Tensor) -> Any:
    """bfloat16, which numpy has not, as the 16 bits that it is."""
    states = states.detach()
    return (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()


def _float(x: Any) -> Any:
    """A stored number as float32: itself, or what has these 16 bits as its upper half."""


@overload(_float, inline="always")
def _(x):  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations included
    if isinstance(x, types.Integer):
        return lambda x: int32(int32(x) << int32(16)).view(float32)
    return lambda x: x


@njit(fastmath=True)
def _exp(x: Any) -> Any:
    """e^x for x <= 0, to 1e-6 of it: numba's own is a call for each number, this is vectorised."""
    power = max(x * float32(1.4426950408889634), float32(-126.0))
    whole = np.floor(power + float32(0.5))
    t = power - whole  # 2^t by its series, |t| <= 1/2
    series = float32(1.5403530393381609e-4)
    series = series * t + float32(1.3333558146428443e-3)
    series = series * t + float32(9.6181291076284772e-3)
    series = series * t + float32(5.5504108664821580e-2)
    series = series * t + float32(2.4022650695910072e-1)
    series = series * t + float32(6.9314718055994531e-1)
    series = series * t + float32(1.0)
    return series * int32((int32(whole) + int32(127)) << int32(23)).view(float32)


@njit(fastmath=True)
def _dots(query: Any, keys: Any, score: Any) -> None:
    """score[g, m] = query[g] . keys[m]."""
    D = query.shape[1]
    for m in range(len(keys)):
        for g in range(len(query)):
            dot = float32(0)
            for d in range(0, D - D % WIDTH, WIDTH):
                for i in range(d, d + WIDTH):
                    dot += query[g, i] * _float(keys[m, i])
            for i in range(D - D % WIDTH, D):
                dot += query[g, i] * _float(keys[m, i])
            score[g, m] = dot


@njit(fastmath=True)
def _mass(score: Any) -> Any:
    """The largest score, and the sum of exp(score - largest)."""
    top, mass = LOWEST, float32(0)
    for m in range(len(score)):
        top = max(top, score[m])
    for m in range(len(score)):
        mass += _exp(score[m] - top)
    return top, mass


@njit(fastmath=True)
def _joined(largest: Any, mass: Any) -> Any:
    """`_mass` of the whole from that of its parts."""
    top, total = LOWEST, float32(0)
    for part in range(len(mass)):
        top = max(top, largest[part])
    for part in range(len(mass)):
        total += mass[part] * _exp(largest[part] - top)
    return top, total


@njit(fastmath=True)
def _add_softmax(score: Any, top: Any, mass: Any, votes: Any) -> None:
    factor = float32(1) / mass
    for m in range(len(score)):
        votes[m] += _exp(score[m] - top) * factor


@njit(parallel=ONLY_PRANGE, fastmath=True, cache=True)
def _vote(query, keys, begin, end, score, largest, mass, votes):  # type: ignore[no-untyped-def]
    B, H, N, _ = keys.shape
    G, blocks = largest.shape[2:]
    for task in prange(B * H * blocks):
        b, h, block = task // (H * blocks), task // blocks % H, task % blocks
        start, stop = block * BLOCK, min(block * BLOCK + BLOCK, N)
        _dots(query[b, h], keys[b, h, start:stop], score[b, h, :, start:stop])
        start, stop = max(start, begin), max(start, begin, min(stop, end))
        for g in range(G):
            part = _mass(score[b, h, g, start:stop])
            largest[b, h, g, block], mass[b, h, g, block] = part
    for b in range(B):
        for h in range(H):
            for g in range(G):
                whole = _joined(largest[b, h, g], mass[b, h, g])
                largest[b, h, g, 0], mass[b, h, g, 0] = whole
    for task in prange(B * blocks):
        b, block = task // blocks, task % blocks
        start, stop = max(block * BLOCK, begin), min(block * BLOCK + BLOCK, end)
        some = votes[b, start - begin : max(start, stop) - begin]
        some[:] = float32(0)
        for h in range(H):
            for g in range(G):
                part = score[b, h, g, start : max(start, stop)]
                _add_softmax(part, largest[b, h, g, 0], mass[b, h, g, 0], some)


@njit(parallel=ONLY_PRANGE, cache=True)
def _best(votes: Any, column: Any) -> None:
    for b in prange(len(votes)):
        _largest(votes[b].view(uint32), column[b])


@njit
def _largest(bits: Any, column: Any) -> None:
    """Where the len(column) largest are, in their order; of equal ones the first. Numbers that are
    not negative have the order of their bits."""
    # the bits of the smallest of them are found from the left, and how many more have these bits
    wanted, known, mask = len(column), uint32(0), uint32(0)
    for shift, width in ((uint32(21), 11), (uint32(10), 11), (uint32(0), 10)):
        count = np.zeros(1 << width, np.int64)
        for m in range(len(bits)):
            if bits[m] & mask == known:
                count[(bits[m] >> shift) & uint32((1 << width) - 1)] += 1
        digit = (1 << width) - 1
        while count[digit] < wanted:
            wanted -= count[digit]
            digit -= 1
        known |= uint32(digit) << shift
        mask |= uint32((1 << width) - 1) << shift
    at = 0
    for m in range(len(bits)):
        if bits[m] > known or (bits[m] == known and wanted > 0):
            wanted -= bits[m] == known
            column[at] = m
            at += 1
