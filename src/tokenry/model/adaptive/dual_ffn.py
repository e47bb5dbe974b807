"""Duo-LLM: every feed-forward block big, small, or skipped, by token and layer.

    y = x + FFN[r](norm(x)),   r in {small, big} or {small, big, skip},   FFN[skip] = 0

A route r = (r_1 .. r_L) says which one a token takes in each layer; attention is shared. Trained
under random routes (`learn.recipes.dual_ffn.train_random_routes`), all routes work, and each token
can be asked what the best one would have been, given its true next token x[t + 1]:

    loss_t(r) = -log p(x[t + 1] | x[<= t]; r),      best route of budget b: argmin over |r|_big = b

with the default route for the tokens before it (all big; reconstructed), whose keys and values are
therefore shared by all routes. A learned router per layer chooses by P = softmax(W x / tau), and is
trained with lambda (mean P(big) - b / L)^2 (`learn.recipes.dual_ffn.train_routers`).

The best route knows the answer: a minimum over C(L, b) nearly exchangeable losses is low by chance.
`RouteLosses.expected_minimum` gives what chance alone would, and `RouteLosses.by_entropy` the loss
of routes chosen without the answer.

Source: Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models (arXiv
2410.10846). The controls of the selection effect are ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import in_range, within
from tokenry.core.errors import InputError, ShapeError
from tokenry.model import compat
from tokenry.model.adaptive.wrapping import (
    MLP,
    Attached,
    Example,
    Wrapper,
    apply_to_selected,
    attach,
    base_model,
    compute_router,
    dtype_and_device,
    linear_flops,
    units,
)

SMALL, BIG, SKIP = 0, 1, 2


def enumerate_routes(layers: int, budget: int | None = None, skip: bool = False) -> Tensor:
    """All routes, or those with `budget` big blocks: [R, layers] of SMALL, BIG and, where it is
    allowed, SKIP."""
    if layers < 1 or not 0 <= (budget or 0) <= layers:
        raise InputError(f"a budget of {budget} big blocks does not fit {layers} layers")
    choices = (SMALL, BIG, SKIP) if skip else (SMALL, BIG)
    routes = torch.tensor(list(itertools.product(choices, repeat=layers)))
    return routes if budget is None else routes[big_blocks(routes) == budget]


def big_blocks(routes: Tensor) -> Tensor:
    """|r|_big, over the last dimension."""
    return (routes == BIG).sum(-1)


def token_difficulty(loss_small: Tensor, loss_big: Tensor) -> Tensor:
    """What more compute gains: loss with small blocks minus loss with big ones. A token with a high
    loss and no gain is unpredictable, not difficult."""
    return loss_small - loss_big


def budget_loss(probability: Tensor, target: float) -> Tensor:
    """(mean over layers and tokens of P(big) - target)^2.

    Args:
        probability: P(big), any shape.
    """
    return (probability.float().mean() - target).square()


@compute_router("duo-llm", paper=42, examples=lambda: _examples())
@dataclass(frozen=True)
class DuoLLM:
    """A small twin for every feed-forward block, and a router per layer.

    Args:
        inner: width of the small blocks; by default a sixteenth of the model's, as in the paper.
        skip: whether a token may take neither.
        seed: of the new weights.
    """

    inner: int | None = None
    skip: bool = False
    seed: int = 0

    key: ClassVar[str] = "duo-llm"

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "inner", integer=True, optional=True)
        within(self, "[-9e18, 9e18]", "seed", integer=True)

    def attach(self, model: Any) -> AttachedDuo:
        """Change `model` in place; until a route is set, every token takes the big blocks, so the
        outputs are those of before."""
        config = base_model(model).config.get_text_config()
        inner = max(config.intermediate_size // 16, 1) if self.inner is None else self.inner
        state = Routing()
        generator = torch.Generator().manual_seed(self.seed)
        wrapped = []
        for unit in units(model):
            if unit.kind == MLP:
                mlp = unit.parent.get_submodule(unit.module)
                small = SmallFFN(config.hidden_size, inner, mlp, generator)
                choose = LayerRouter(config.hidden_size, 3 if self.skip else 2, generator)
                choose.to(dtype_and_device(mlp)["device"])
                wrapped.append(
                    (unit.parent, unit.module, DualFFN(mlp, small, choose, unit.layer, state))
                )
        return attach(model, self, wrapped, AttachedDuo)


class SmallFFN(nn.Module):
    """down(act(gate x) * up x), of the big block's form and dtype."""

    def __init__(self, size: int, inner: int, big: nn.Module, generator: torch.Generator):
        super().__init__()
        self.gate = nn.Linear(size, inner, bias=False)
        self.up = nn.Linear(size, inner, bias=False)
        self.down = nn.Linear(inner, size, bias=False)
        self.activation = getattr(big, "act_fn", nn.functional.silu)
        for layer in (self.gate, self.up, self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        self.to(**dtype_and_device(big))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class LayerRouter(nn.Module):
    """Logits W x over {small, big} or {small, big, skip}, in float32."""

    def __init__(self, size: int, choices: int = 2, generator: torch.Generator | None = None):
        super().__init__()
        self.linear = nn.Linear(size, choices, bias=False)
        nn.init.normal_(self.linear.weight, std=size**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.linear.weight)).float()


@dataclass
class Routing:
    """How the blocks of one model choose.

    Args:
        routes: [L], one route for all tokens, or [B, T, L]; None: the routers decide if `tau` is
            set (`hard`: by argmax), else all big.
        seen: where P [B, T, choices] of each layer is left.
    """

    routes: Tensor | None = None
    tau: float | None = None
    hard: bool = True
    seen: list[Tensor] | None = field(default=None, repr=False)


class DualFFN(Wrapper):
    """A feed-forward block with a small twin."""

    def __init__(
        self, big: nn.Module, small: nn.Module, choose: nn.Module, layer: int, state: Routing
    ):
        super().__init__(big)
        self.add_own("small", small)
        self.add_own("width_router", choose)
        self.layer, self.state = layer, state

    def forward(self, x: Tensor) -> Tensor:
        state = self.state
        if state.routes is not None:
            routes = state.routes.to(x.device)
            if routes.ndim > 1 and routes.shape[:-1] != x.shape[:-1]:
                raise ShapeError(
                    f"routes are {list(routes.shape)} for tokens {list(x.shape[:-1])}: give [L] or "
                    "[B, T, L], T being the columns of this forward"
                )
            return self.routed(x, routes[..., self.layer])
        if state.tau is None:
            return self.base(x)
        probability = (self.width_router(x) / state.tau).softmax(-1)  # [B, T, choices]
        if state.seen is not None:
            state.seen.append(probability)
        if state.hard:
            return self.routed(x, probability.argmax(-1))
        weight = probability.to(x.dtype)
        return weight[..., SMALL, None] * self.small(x) + weight[..., BIG, None] * self.base(x)

    def routed(self, x: Tensor, route: Tensor) -> Tensor:
        """Each token by its own block; a block computes the tokens that take it."""
        route = route.expand(x.shape[:-1])
        big, small = route == BIG, route == SMALL
        if bool(big.all()):
            return self.base(x)
        return apply_to_selected(self.base, x, big) + apply_to_selected(self.small, x, small)


class AttachedDuo(Attached):
    """Duo-LLM on a model: which route its forwards take is set here."""

    @property
    def state(self) -> Routing:
        return self.wrappers(DualFFN)[0].state

    @property
    def layers(self) -> int:
        return len(self.wrappers(DualFFN))

    @contextmanager
    def route(self, routes: Tensor | Literal["big", "small", "skip"]) -> Iterator[None]:
        """Within: forwards take these routes, [L] or [B, T, L] of SMALL, BIG, SKIP."""
        if isinstance(routes, str):
            kinds = {"big": BIG, "small": SMALL, "skip": SKIP}
            if routes not in kinds:
                raise InputError(f"route {routes!r} is none of {', '.join(kinds)}")
            routes = torch.full((self.layers,), kinds[routes])
        if routes.ndim not in (1, 3) or routes.shape[-1] != self.layers:
            raise ShapeError(
                f"routes must be [{self.layers}] or [B, T, {self.layers}], got {list(routes.shape)}"
            )
        with self._set(routes=routes):
            yield

    @contextmanager
    def learned(self, tau: float = 1.0, hard: bool = True) -> Iterator[list[Tensor]]:
        """Within: the routers choose. Gives the list in which every forward leaves P
        [B, T, choices] of each layer, in order."""
        in_range("tau", tau, "(0, inf)")
        seen: list[Tensor] = []
        with self._set(routes=None, tau=tau, hard=hard, seen=seen):
            yield seen

    @contextmanager
    def _set(self, **values: Any) -> Iterator[None]:
        before = {name: getattr(self.state, name) for name in values}
        for name, value in values.items():
            setattr(self.state, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.state, name, value)

    def random_routes(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent choices with equal probabilities, [*shape, L]."""
        choices = 3 if self.method.skip else 2
        return torch.randint(choices, (*shape, self.layers), generator=generator)

    def flops(self, routes: Tensor) -> Tensor:
        """FLOPs of the feed-forward blocks for one token, for routes [.., L]."""
        blocks = self.wrappers(DualFFN)
        small = torch.tensor([linear_flops(block.small) for block in blocks])
        big = torch.tensor([linear_flops(block.base) for block in blocks])
        return (small * (routes == SMALL) + big * (routes == BIG)).sum(-1)


@dataclass(frozen=True)
class RouteLosses:
    """What every route would have made of every token.

    Attributes:
        routes: [R, L].
        loss: [B, T, R] float32, position t the loss of token t when the token before it takes the
            route; 0 at position 0.
        entropy: [B, T, R], of the distribution for token t.
        scored: bool [B, T].
    """

    routes: Tensor
    loss: Tensor
    entropy: Tensor
    scored: Tensor

    def of_budget(self, budget: int) -> Tensor:
        """Indices of the routes with `budget` big blocks."""
        index = (big_blocks(self.routes) == budget).nonzero()[:, 0]
        if not len(index):
            raise InputError(f"no route has {budget} big blocks of {self.routes.shape[1]}")
        return index

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values [B, T, ..] over the scored tokens."""
        return values[self.scored].mean(0)

    def oracle(self, budget: int) -> tuple[Tensor, Tensor]:
        """(loss [B, T], index of the route [B, T]) of the best route of a budget."""
        index = self.of_budget(budget)
        best = self.loss[..., index].min(-1)
        return best.values, index[best.indices]

    def by_entropy(self, budget: int) -> Tensor:
        """Loss [B, T] of the route of a budget that is surest of itself: no answer is used."""
        index = self.of_budget(budget)
        chosen = index[self.entropy[..., index].argmin(-1)]
        return self.loss.gather(-1, chosen[..., None])[..., 0]

    def expected_minimum(self, budget: int) -> Tensor:
        """Loss [B, T] that the best of as many independent normal losses would have, with the mean
        and the deviation that the token's losses have over the routes of the budget."""
        losses = self.loss[..., self.of_budget(budget)]
        count = losses.shape[-1]
        if count == 1:
            return losses[..., 0]
        # the mean of the deviation of so few samples, as a share of the true one
        expected_deviation = math.exp(math.lgamma(count / 2) - math.lgamma((count - 1) / 2))
        expected_deviation *= math.sqrt(2 / (count - 1))
        return losses.mean(-1) + losses.std(-1) / expected_deviation * normal_minimum(count)

    def usage(self, budget: int) -> Tensor:
        """How often the best route of a budget has a big block in each layer, [L]."""
        _, best = self.oracle(budget)
        return self.mean((self.routes[best] == BIG).float())


@torch.no_grad()
def oracle_routes(
    attached: AttachedDuo,
    ids: Tensor,
    routes: Tensor | None = None,
    attention: Tensor | None = None,
    default: Tensor | None = None,
) -> RouteLosses:
    """The loss of every token of ids [B, T] under every route, R + 1 forwards in all.

    The default pass leaves keys and values; then one pass per route reads the text again, each
    token seeing the default states of the tokens before it and its own of the route.

    Args:
        routes: [R, L], by default all.
        attention: [B, T], padding on either side.
        default: [L], the route of the tokens before; all big by default.
    """
    model = attached.model
    if routes is None:
        routes = enumerate_routes(attached.layers, skip=attached.method.skip)
    if default is None:
        default = torch.full((attached.layers,), BIG)
    real = torch.ones_like(ids).bool() if attention is None else attention.bool()
    B, T = ids.shape
    if T < 2 or real.shape != ids.shape:
        raise ShapeError(f"ids must be [B, T >= 2] and attention alike; got {list(ids.shape)}")
    positions = (real.cumsum(1) - 1).clamp_min(0)
    cache = compat.plain_cache(model)
    with attached.route(default):
        model(
            input_ids=ids,
            attention_mask=real.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    order = torch.arange(T, device=ids.device)
    before = (order[:, None] > order) & real[:, None]  # [B, T, T]: default columns
    itself = torch.eye(T, dtype=torch.bool, device=ids.device).expand(B, T, T)
    allowed = torch.cat([before, itself], dim=-1)
    mask = compat.mask_argument(model, allowed, positions, positions.repeat(1, 2))
    losses, entropies = [], []
    for route in routes:
        with attached.route(route):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=compat.copy_cache(cache),
                use_cache=True,
            ).logits
        logprob = logits[:, :-1].float().log_softmax(-1)
        losses.append(-logprob.gather(-1, ids[:, 1:, None])[..., 0])
        entropies.append(-(logprob.exp() * logprob).sum(-1))
    scored = torch.zeros_like(real)
    scored[:, 1:] = real[:, 1:] & real[:, :-1]
    loss, entropy = (
        nn.functional.pad(torch.stack(parts, -1), (0, 0, 1, 0)) * scored[..., None]
        for parts in (losses, entropies)
    )
    return RouteLosses(routes, loss, entropy, scored)


def normal_minimum(count: int) -> float:
    """The expected minimum of `count` independent standard normal variables."""
    if count == 1:
        return 0.0
    x = torch.linspace(-12, 12, 24001, dtype=torch.double)
    density = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    above = torch.special.ndtr(-x)
    return float(torch.trapezoid(x * count * density * above ** (count - 1), x))


def _examples() -> list[Example]:
    return [
        Example(DuoLLM(4, True), [AttachedDuo.learned, lambda attached: attached.route("small")])
    ]
