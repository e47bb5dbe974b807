"""Informed routing: a unit runs for the tokens whose output a small forecaster cannot reproduce.

For each unit F (attention, or the feed-forward block) of a layer, u = norm(x):

    x <- x + g_0 F(u) + g_1 LFF(u),     LFF(u) = W_2 act(W_1 u + b_1) + b_2,   of rank r
    (g_0, g_1) = one-hot of argmax r(u),     r(u) = W_b relu(W_a u)            execute, approximate

LFF is the feature forecaster of the unit's residual update, r the token's router. In training the
choice is a hard Gumbel-softmax with a straight-through gradient. mode="skip" leaves LFF out (the
baseline SkipGPT). Approximated tokens still leave keys and values for others. In models like
Gemma 3 F includes the norm behind the unit.

    attached = InformedRouting(rank=64, activation="identity").attach(model)  # outputs as before
    fit_forecasters(attached, batches)           # learn.recipes.informed_routing; closed form
    start_token_routers(attached, batches, 50)   # there too; which tokens are forecast best
    attached.rule = Learned()                    # `routing_rules`; from now on routed

Source: Informed Routing in LLMs: Smarter Token-Level Computation for Faster Inference (arXiv
2510.13831). Ours: the closed-form fit, argmax in place of sampling at test time, and the rules
without a router, which serve as bounds and baselines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenry.core.checks import one_of, within
from tokenry.model.adaptive.routed_units import (
    FeatureForecaster,
    PassedNorm,
    Record,
    RememberedNorm,
    RoutedUnit,
    Routing,
    Rule,
    TokenRouter,
)
from tokenry.model.adaptive.routing_rules import Learned
from tokenry.model.adaptive.wrapping import (
    ATTENTION,
    Attached,
    Example,
    attach,
    attention_flops,
    base_model,
    compute_router,
    dtype_and_device,
    linear_flops,
    units,
)


@compute_router("informed-routing", paper=140, examples=lambda: _examples())
@dataclass(frozen=True)
class InformedRouting:
    """A forecaster and a router for every unit.

    Args:
        rank: r, 100 in the paper.
        hidden: width of the router; by default d / 4 - 200 from d = 4096 on and d / 4 below.
        activation: "silu", or "identity" for the closed-form fit.
        mode: "approximate" or "skip".
        seed: of the new weights, which start near LFF = 0.
    """

    rank: int = 100
    hidden: int | None = None
    activation: str = "silu"
    mode: str = "approximate"
    seed: int = 0

    key: ClassVar[str] = "informed-routing"

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "rank", integer=True)
        within(self, "[1, inf)", "hidden", integer=True, optional=True)
        within(self, "[-9e18, 9e18]", "seed", integer=True)
        one_of("InformedRouting.activation", self.activation, ("silu", "identity"))
        one_of("InformedRouting.mode", self.mode, ("approximate", "skip"))

    def attach(self, model: Any) -> AttachedRouting:
        """Change `model` in place; until a rule is set, every unit runs for every token."""
        size = base_model(model).config.get_text_config().hidden_size
        hidden = self.hidden or (size // 4 - 200 if size >= 4096 else max(8, size // 4))
        state, wrapped = Routing(mode=self.mode), []
        generator = torch.Generator().manual_seed(self.seed)
        for location in units(model):
            norm, module = (
                location.parent.get_submodule(name) for name in (location.norm, location.module)
            )
            device = dtype_and_device(module)["device"]
            forecaster = FeatureForecaster(size, self.rank, self.activation, generator)
            choose = TokenRouter(size, hidden, generator)
            before = RememberedNorm(norm, state)
            after = None
            if location.after is not None:
                after = PassedNorm(location.parent.get_submodule(location.after))
                wrapped.append((location.parent, location.after, after))
            unit = RoutedUnit(module, forecaster.to(device), choose.to(device), location, state)
            unit.neighbours = (before, after)
            wrapped += [
                (location.parent, location.norm, before),
                (location.parent, location.module, unit),
            ]
        attached = attach(model, self, wrapped, AttachedRouting)
        attached.watch_padding()
        return attached


class AttachedRouting(Attached):
    """Informed routing on a model. Padding, as the forward's `attention_mask` [B, T] has it, counts
    in no share.

    Attributes:
        rule: which tokens run, for every forward from now on (`Learned()` once routers are
            trained); None: all.
        mode: "approximate" or "skip".
    """

    def watch_padding(self) -> None:
        """Every forward shows the units its padding. (A mask of four dimensions does not say which
        columns are none.)"""
        model = base_model(self.model)
        read = model.register_forward_pre_hook(_note_padding, with_kwargs=True)
        done = model.register_forward_hook(_forget_padding, always_call=True)
        self.handles = (read, done)

    def remove(self) -> None:
        super().remove()
        for handle in self.handles:
            handle.remove()

    @property
    def units(self) -> list[RoutedUnit]:
        return self.wrappers(RoutedUnit)

    @property
    def state(self) -> Routing:
        return self.units[0].state

    @property
    def rule(self) -> Rule | None:
        return self.state.rule

    @rule.setter
    def rule(self, rule: Rule | None) -> None:
        self.state.rule = rule

    @contextmanager
    def using(self, rule: Rule | None, mode: str | None = None) -> Iterator[None]:
        """Within: another rule, and another mode if one is given."""
        before = self.state.rule, self.state.mode
        self.state.rule, self.state.mode = rule, mode or self.state.mode
        try:
            yield
        finally:
            self.state.rule, self.state.mode = before

    @contextmanager
    def recording(self, attention: Tensor | None = None) -> Iterator[list[Record]]:
        """Within: every forward appends a `Record` for each unit.

        Args:
            attention: [B, T] of the batch, so that padding is left out of shares and rates.
        """
        records: list[Record] = []
        self.state.records = records
        self.state.real = None if attention is None else attention.bool()
        try:
            yield records
        finally:
            self.state.records = self.state.real = None
            for wrapper in self.wrappers(RememberedNorm):
                wrapper.residual = None

    def flops_saved(self, rates: Sequence[float], context: int) -> FlopsSaved:
        """FLOPs for a token that sees `context` keys, when unit n runs for a share rates[n] of the
        tokens, in the order of `units`."""
        dense = needed = spent = 0.0
        for unit, rate in zip(self.units, rates, strict=True):
            parts = linear_flops(unit.base)
            always = linear_flops(unit.token_router)
            away = 0.0 if self.state.mode == "skip" else linear_flops(unit.forecaster) * (1 - rate)
            if unit.location.kind == ATTENTION:
                attention = unit.base
                names = ("k_proj", "v_proj")
                shared = sum(linear_flops(attention.get_submodule(name)) for name in names)
                parts += attention_flops(self.model, context, unit.location.layer)
                needed += shared + rate * (parts - shared) + always + away
                spent += parts + always + away
            else:
                needed += rate * parts + always + away
                spent += rate * parts + always + away
            dense += parts
        return FlopsSaved(dense, needed, spent)


def _note_padding(model: Any, args: Any, options: Any) -> None:
    mask = options.get("attention_mask", args[1] if len(args) > 1 else None)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        for state in _states(model):
            state.seen = mask.bool()


def _forget_padding(model: Any, args: Any, output: Any) -> None:
    for state in _states(model):
        state.seen = None


def _states(model: Any) -> list[Routing]:
    """Of the model that is called, which may be a copy of the one that was attached to."""
    return [module.state for module in model.modules() if isinstance(module, RoutedUnit)]


@dataclass(frozen=True)
class FlopsSaved:
    """FLOPs of all units for one token: dense; needed by the method, routers and forecasters
    included; spent by this implementation, whose attention units compute every token."""

    dense: float
    needed: float
    spent: float

    @property
    def saved(self) -> float:
        """The method's saving as a share of the dense units."""
        return 1 - self.needed / self.dense


def _examples() -> list[Example]:
    return [Example(InformedRouting(5, 6), [lambda attached: attached.using(Learned())])]
