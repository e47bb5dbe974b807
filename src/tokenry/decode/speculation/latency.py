"""What a pass over so many tokens takes on this machine, and which kernels take less.

Speculation pays by this curve: a tree of m guesses costs the time of m + 1 tokens instead of 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tokenry.model import compat
from tokenry.model.decoding import DecodingState
from tokenry.model.kernels.packed import can_pack, is_packed, packed

SIZES = (1, 2, 3, 4, 8, 16, 32)
TRIED = (1, 8)  # one token, and a small tree: what kernels are compared by
STEADY = 0.9  # a round that finds less than this share of the best time shows that others ran
LONGEST = 2.0  # seconds of measuring after which no further round begins

MEASURING_PAYS = 512  # new tokens from which measuring and packing the weights win back their time

# one token as the unit, plain kernels: SmolLM2-135M on two cores, the dearer of two such machines
ASSUMED = {1: 1.0, 2: 1.65, 3: 1.7, 4: 1.7, 8: 1.8, 16: 2.0, 32: 2.7}
BANDWIDTH = {"cpu": 1e10}  # bytes of weights read per second, for the unit
ACCELERATED = 1e12

_CURVES: WeakKeyDictionary[Any, dict[bool, dict[int, float]]] = WeakKeyDictionary()


def latency_curve(
    model: Any, sizes: Sequence[int] = SIZES, context: int = 128, repeats: int = 2
) -> dict[int, float]:
    """Seconds of one pass over so many tokens after `context` others (fewer in a smaller window).

    The best time counts, since other work on the machine only ever adds to it: sizes take turns
    until `repeats` rounds have found nothing a tenth faster, four times as many rounds at most, and
    no round begins after LONGEST seconds. A size never takes longer than a larger one, which could
    stand in for it. Measured once per model and process, with and without `packed` kernels; a
    100M-parameter model on a laptop takes a second or two.
    """
    known = _CURVES.setdefault(model, {}).setdefault(is_packed(model), {})
    if missing := [size for size in sizes if size not in known]:
        known |= measured(model, missing, context, repeats)
    return {size: min(taken for other, taken in known.items() if other >= size) for size in sizes}


def measured(model: Any, sizes: Sequence[int], context: int, repeats: int) -> dict[int, float]:
    """Each size's best time."""
    device = next(model.parameters()).device
    window = compat.window(model)
    if window is not None:
        context = max(1, min(context, window - 2))  # two more positions, however many tokens
    state = DecodingState.start(model, torch.zeros(1, context, dtype=torch.long, device=device))
    best = dict.fromkeys(sizes, float("inf"))
    left, begun = repeats, time.perf_counter()
    for _ in range(4 * repeats):
        left -= 1
        for size in sizes:
            started = time.perf_counter()
            tokens = torch.zeros(size, dtype=torch.long, device=device)
            if size == 1:
                logits = state.append(tokens)
            else:
                logits = state.tree(tokens, torch.tensor([-1] + [0] * (size - 1), device=device))
            float(logits[-1, 0])  # waits for an accelerator
            taken = time.perf_counter() - started
            state.crop(size)
            if taken < STEADY * best[size]:
                left = repeats
            best[size] = min(best[size], taken)
        if not left or time.perf_counter() - begun > LONGEST:
            break
    return best


@contextmanager
def for_one_request(model: Any, new_tokens: int) -> Iterator[bool | None]:
    """Within it, a request too short to win back the time of measuring takes an assumed curve.

    Yields what to give as `kernels`: False for such a request, since packing the weights takes time
    too; None where the curve is known or measuring pays. ASSUMED is on the careful side: a tree
    that it calls worth its time is worth it on machines with a flatter curve.
    """
    known = _CURVES.setdefault(model, {})
    if new_tokens >= MEASURING_PAYS or any(known.values()):
        yield None
        return
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    unit = size / BANDWIDTH.get(next(model.parameters()).device.type, ACCELERATED)
    known[is_packed(model)] = {tokens: unit * times for tokens, times in ASSUMED.items()}
    try:
        yield False
    finally:
        known.clear()


@contextmanager
def quick_kernels(model: Any, kernels: bool | None = None) -> Iterator[None]:
    """`packed` or plain kernels. None: whichever this machine's curves say reads one token and a
    small tree in less time; measuring takes a second, once per model and process."""
    if kernels is None:
        kernels = is_packed(model) or packing_pays(model)
    with packed(model) if kernels else nullcontext():
        yield


def packing_pays(model: Any) -> bool:
    if not any(can_pack(weight) for weight in model.parameters()):
        return False  # the kernels would be the plain ones
    plain = latency_curve(model, TRIED)
    with packed(model):
        few = latency_curve(model, TRIED)
    return sum(few.values()) < sum(plain.values())
