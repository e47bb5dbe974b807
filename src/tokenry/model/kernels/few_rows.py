"""A linear layer for a few rows as machine code: every weight is read once, at the memory's speed.

y[m, n] = sum_k x[m, k] w[n, k]. The weight lies in panels of LANES outputs, [panels, K, LANES], so
that a step over k reads one line of memory and multiplies it into up to TALL rows, whose sums stay
in the processor's registers. More rows go over the same panel, by then in its cache, and meanwhile
fetch the next one. So up to some twelve rows take the time of one, and 32 what their arithmetic
takes.

Sums are float32 and run over k in order, whatever the number of rows: a row's result is the same to
the last bit alone and among others. Weights that 16 bits hold exactly (those of models saved in
bfloat16) are kept in 16.
"""

from dataclasses import dataclass
from typing import Any

import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from tokenry.model.kernels.machine_code import ONLY_PRANGE, run

LANES = 16  # outputs of a panel: two registers of 256 bits, or one of 512
TALL = 4  # rows at a time, with LANES sums each
STEPS = 4  # over k between two jumps
LINE = 64  # bytes that a prefetch brings
WORD, FLAG, BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
VECTOR = ir.VectorType(ir.FloatType(), LANES)


class Panels:
    """A weight [N, K], float32 or bfloat16, laid out in panels [ceil(N / LANES), K, LANES]; the
    last one is filled up with zeros."""

    def __init__(self, weight: Tensor):
        weight = weight.detach()
        short = weight.bfloat16()
        if torch.equal(short.to(weight.dtype), weight):
            weight = short
        self.outputs, self.inputs = weight.shape
        self.count = -(-self.outputs // LANES)
        panels = weight.new_zeros(self.count, LANES, self.inputs)
        panels.view(-1, self.inputs)[: self.outputs] = weight
        self.panels = panels.mT.contiguous()

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [..., K] times the weight, [..., N]."""
        x = rows.float().contiguous()
        y = torch.empty(*x.shape[:-1], self.count * LANES)
        many = x.numel() // self.inputs
        where = x.data_ptr(), self.panels.data_ptr(), y.data_ptr()
        run(_multiply, *where, many, self.inputs, self.count, self.panels.element_size())
        if self.outputs % LANES:
            y = y[..., : self.outputs]
        return y if y.dtype == rows.dtype else y.to(rows.dtype)


@dataclass(frozen=True)
class Tile:
    """What machine code is specialised for: `tall` rows, weights of `size` bytes, and whether it
    also brings half a panel's memory, from `ahead` on, near the processor."""

    tall: int
    size: int
    fetch: bool


TILES = tuple(
    Tile(tall, size, fetch)
    for size in (2, 4)
    for fetch in (False, True)
    for tall in range(1, TALL + 1)
)


@njit(parallel=ONLY_PRANGE, cache=True)
def _multiply(x, panels, y, M, K, P, size):  # type: ignore[no-untyped-def]
    """y [M, P · LANES] from x [M, K] and P panels, all by their addresses."""
    tiles = (M + TALL - 1) // TALL
    for p in prange(P):
        panel = panels + p * K * LANES * size
        for i in range(tiles):
            begin, end = M * i // tiles, M * (i + 1) // tiles
            fetch = i < 2 <= tiles  # a tile alone waits for its own panel, two share the next one
            ahead = panel + (K + i * K // 2) * LANES * size
            which = (size // 4 * 2 + fetch) * TALL + end - begin - 1  # in TILES
            out = y + 4 * LANES * (begin * P + p)
            _tile(which, x + 4 * begin * K, panel, ahead, out, K, P * LANES)


def _typed_tile(_, which, x, panel, ahead, y, K, width):  # type: ignore[no-untyped-def]
    """y[m, n] for the rows m of a tile and the LANES outputs n of a panel; K and width are the
    lengths of the rows of x and y."""

    def generate(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        end = b.append_basic_block("end")
        choice = b.switch(arguments[0], end)
        for number, tile in enumerate(TILES):
            begin = b.append_basic_block(f"tile{number}")
            choice.add_case(WORD(number), begin)
            b.position_at_end(begin)
            _emit(b, tile, *arguments[1:])
            b.branch(end)
        b.position_at_end(end)
        return ir.Constant(ir.IntType(1), 0)

    return types.boolean(*[types.int64] * 7), generate


_tile: Any = intrinsic(_typed_tile)


def _emit(b: Any, tile: Tile, x: Any, panel: Any, ahead: Any, y: Any, K: Any, width: Any) -> None:
    """Instructions of a tile; arguments are 64-bit words."""
    lines = STEPS * LANES * tile.size // LINE // 2 if tile.fetch else 0  # of half a panel's steps
    rows = [_place(b, x, b.mul(K, WORD(row)), 4) for row in range(tile.tall)]

    def loop(sums: list[Any], begin: Any, end: Any, steps: int, lines: int) -> list[Any]:
        """The sums after k = begin .. end - 1, `steps` at a time."""
        before = b.block
        test, body, after = (b.append_basic_block(name) for name in ("test", "body", "after"))
        b.branch(test)
        b.position_at_end(test)
        k, *carried = [b.phi(kind) for kind in (WORD, *[VECTOR] * tile.tall)]
        b.cbranch(b.icmp_signed("<", k, end), body, after)
        b.position_at_end(body)
        now = list(carried)
        for step in range(steps):
            at = b.add(k, WORD(step))
            weights = _weights(b, _place(b, panel, at, LANES * tile.size), tile.size)
            if step < lines:
                _prefetch(b, b.add(_place(b, ahead, k, LINE * lines // steps), WORD(LINE * step)))
            for row in range(tile.tall):
                number = _load(b, ir.FloatType(), _place(b, rows[row], at, 4), 4)
                now[row] = _multiply_add(b, weights, _everywhere(b, number), now[row])
        following = (b.add(k, WORD(steps)), *now)
        for variable, first, later in zip((k, *carried), (begin, *sums), following, strict=True):
            variable.add_incoming(first, before)
            variable.add_incoming(later, b.block)
        b.branch(test)
        b.position_at_end(after)
        return carried

    even = b.sub(K, b.srem(K, WORD(STEPS)))
    sums = loop([ir.Constant(VECTOR, [0.0] * LANES)] * tile.tall, WORD(0), even, STEPS, lines)
    for row, total in enumerate(loop(sums, even, K, 1, 0)):
        address = _place(b, y, b.mul(width, WORD(row)), 4)
        b.store(total, b.inttoptr(address, VECTOR.as_pointer())).align = 4


def _place(b: Any, base: Any, index: Any, size: int) -> Any:
    return b.add(base, b.mul(index, WORD(size)))


def _load(b: Any, kind: Any, address: Any, align: int) -> Any:
    vector = b.load(b.inttoptr(address, kind.as_pointer()))
    vector.align = align
    return vector


def _weights(b: Any, address: Any, size: int) -> Any:
    """A vector of weights as float32; the 16 bits of bfloat16 are the upper half of one."""
    if size == 4:
        return _load(b, VECTOR, address, 4)
    whole = ir.VectorType(FLAG, LANES)
    halves = _load(b, ir.VectorType(ir.IntType(16), LANES), address, 2)
    return b.bitcast(b.shl(b.zext(halves, whole), whole([16] * LANES)), VECTOR)


def _everywhere(b: Any, number: Any) -> Any:
    nothing = ir.Constant(VECTOR, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(FLAG, LANES), [0] * LANES)
    return b.shuffle_vector(b.insert_element(nothing, number, FLAG(0)), nothing, zeros)


def _multiply_add(b: Any, *vectors: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), vectors)


def _prefetch(b: Any, address: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [BYTES, FLAG, FLAG, FLAG])
    prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(prefetch, [b.inttoptr(address, BYTES), FLAG(0), FLAG(2), FLAG(1)])  # to read, L2, data
