"""Units of informed routing: a block with its forecaster and its router, and what they record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tokenry.core.errors import ModelError
from tokenry.model.adaptive.wrapping import ATTENTION, UnitLocation, Wrapper, apply_to_selected

EXECUTE, APPROXIMATE = 0, 1  # what the logits of a router stand for


class FeatureForecaster(nn.Module):
    """W_2 act(W_1 u + b_1) + b_2 in float32; weights start as N(0, 0.001^2), so LFF as 0."""

    def __init__(
        self,
        size: int,
        rank: int = 100,
        activation: str = "silu",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.reduce, self.expand = nn.Linear(size, rank), nn.Linear(rank, size)
        self.activation = nn.SiLU() if activation == "silu" else nn.Identity()
        for layer in (self.reduce, self.expand):
            nn.init.normal_(layer.weight, std=1e-3, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, u: Tensor) -> Tensor:
        return self.expand(self.activation(self.reduce(u.to(self.reduce.weight))))


class TokenRouter(nn.Module):
    """W_b relu(W_a u): logits [.., 2] for execute and approximate, in float32."""

    def __init__(self, size: int, hidden: int, generator: torch.Generator | None = None):
        super().__init__()
        self.inner = nn.Linear(size, hidden, bias=False)
        self.outer = nn.Linear(hidden, 2, bias=False)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)

    def forward(self, u: Tensor) -> Tensor:
        return self.outer(self.inner(u.to(self.inner.weight)).relu()).float()


class Rule(Protocol):
    """Which tokens a unit runs for.

    Called with the unit, u [B, T, D], F(u) (None unless needed) and `real` [B, T], False on
    padding if known; gives g_0 [B, T], 1 where the unit runs.

    Attributes:
        needs_update: whether it must know F(u) first.
    """

    needs_update: ClassVar[bool]

    def __call__(
        self, unit: RoutedUnit, u: Tensor, update: Tensor | None, real: Tensor
    ) -> Tensor: ...


@dataclass
class Record:
    """What one unit did in a forward: u, F(u) [B, T, D], g_0 [B, T] and the cosine of x and
    x + F(u) [B, T]."""

    location: UnitLocation
    u: Tensor
    update: Tensor | None
    execute: Tensor
    turn: Tensor | None


@dataclass
class Routing:
    """How the units of one model choose.

    Args:
        records: where each forward leaves what they did.
        real: which columns are none, as `recording` was told, and as the forward under way was.
        seen: as `real`.
    """

    mode: str
    rule: Rule | None = None
    real: Tensor | None = None
    seen: Tensor | None = None
    records: list[Record] | None = field(default=None, repr=False)


class RememberedNorm(Wrapper):
    """A norm that, while a record is made, keeps the residual x that it read."""

    def __init__(self, base: nn.Module, state: Routing):
        super().__init__(base)
        self.state = state
        self.residual: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.residual = x if self.state.records is not None else None
        return self.base(x)


class PassedNorm(Wrapper):
    """A norm behind a unit, which the unit applies itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class RoutedUnit(Wrapper):
    """Attention or a feed-forward block with its forecaster and router."""

    def __init__(
        self, base: nn.Module, forecaster: nn.Module, choose: nn.Module, location: Any, state: Any
    ):
        super().__init__(base)
        self.add_own("forecaster", forecaster)
        self.add_own("token_router", choose)
        self.location, self.state = location, state
        self.neighbours: tuple[RememberedNorm | None, PassedNorm | None] = (None, None)

    def forward(self, *args: Any, **arguments: Any) -> Any:
        u = args[0] if args else arguments["hidden_states"]
        if self.location.kind == ATTENTION:
            update, *rest = self.base(*args, **arguments)  # keys and values are wanted from all
            return (self.routed(u, self.normed(update)), *rest)
        state = self.state
        if state.records is None and (state.rule is None or not state.rule.needs_update):
            return self.routed(u, None)
        return self.routed(u, self.normed(self.base(u)))

    def routed(self, u: Tensor, update: Tensor | None) -> Tensor:
        """g_0 F(u) + g_1 LFF(u).

        Args:
            update: F(u), or None to compute it where it is used.
        """
        state = self.state
        real = torch.ones(u.shape[:-1], dtype=torch.bool, device=u.device)
        known = state.seen if state.real is None else state.real
        if known is not None:
            real = known[:, -u.shape[1] :].to(u.device)
        if real.shape != u.shape[:-1]:
            raise ModelError(
                f"informed routing was given {list(u.shape[:-1])} tokens of a batch of "
                f"{list(real.shape)}: another method chooses tokens before it; remove one of them"
            )
        if state.rule is None:
            execute = real.new_ones(real.shape)
        else:
            execute = state.rule(self, u, update, real)
            execute = torch.where(real, execute, torch.ones_like(execute))
        if state.records is not None:
            self.record(u, update, execute)
        if execute.dtype == torch.bool and bool(execute.all()):
            return self.normed(self.base(u)) if update is None else update
        if execute.dtype != torch.bool:  # training: both branches carry gradient
            assert update is not None
            gate = execute.to(update.dtype)[..., None]
            if state.mode == "skip":
                return gate * update
            return gate * update + (1 - gate) * self.forecaster(u).to(update.dtype)
        if update is None:
            ran = apply_to_selected(lambda x: self.normed(self.base(x)), u, execute)
        else:
            ran = update * execute[..., None]
        if state.mode == "skip":
            return ran
        return ran + apply_to_selected(self.forecaster, u, ~execute).to(ran.dtype)

    def normed(self, output: Tensor) -> Tensor:
        """The residual update: behind the layer's post-norm where there is one."""
        after = self.neighbours[1]
        return output if after is None else after.base(output)

    def record(self, u: Tensor, update: Tensor | None, execute: Tensor) -> None:
        before, turn = self.neighbours[0], None
        if update is not None and before is not None and before.residual is not None:
            x = before.residual.float()
            turn = cosine_similarity(x, x + update.float(), dim=-1)
        self.state.records.append(Record(self.location, u, update, execute, turn))
