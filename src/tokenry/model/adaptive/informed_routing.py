"""Informed routing: a unit runs for the tokens whose output a small forecaster cannot reproduce.

For each unit F (attention, or the feed-forward block) of a layer, u = norm(x):

    x <- x + g_0 F(u) + g_1 LFF(u),     LFF(u) = W_2 act(W_1 u + b_1) + b_2,   of rank r
    (g_0, g_1) = one-hot of argmax r(u),     r(u) = W_b relu(W_a u)            execute, approximate

LFF is the feature forecaster of the unit's residual update, r the token's router. In training the
choice is a hard Gumbel-softmax with a straight-through gradient. mode="skip" leaves LFF out (the
baseline SkipGPT). Approximated tokens still leave keys and values for others. In models like
Gemma 3 F includes the norm behind the unit.

    attached = InformedRouting(rank=64, activation="identity").attach(model)  # outputs as before
    fit_forecasters(attached, batches)                  # learn.recipes.adaptive; closed form
    start_token_routers(attached, batches, steps=50)    # there too; which are forecast best
    attached.rule = Learned()                           # from now on routed

Source: Informed Routing in LLMs: Smarter Token-Level Computation for Faster Inference (arXiv
2510.13831). Ours: the closed-form fit, argmax in place of sampling at test time, and the rules
without a router, which serve as bounds and baselines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tokenry.core.checks import one_of, within
from tokenry.core.errors import InputError, ModelError
from tokenry.model.adaptive.wrapping import (
    ATTENTION,
    MLP,
    Attached,
    UnitLocation,
    Wrapper,
    apply_to_selected,
    attach,
    attention_flops,
    base_model,
    compute_router,
    dtype_and_device,
    linear_flops,
    units,
)

EXECUTE, APPROXIMATE = 0, 1


@compute_router("informed-routing", paper=140)
@dataclass(frozen=True)
class InformedRouting:
    """A forecaster and a router for every unit.

    rank: r, 100 in the paper. hidden: width of the router; by default d / 4 - 200 from d = 4096 on
    and d / 4 below. activation: "silu", or "identity" for the closed-form fit. mode: "approximate"
    or "skip". seed: of the new weights, which start near LFF = 0.
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
    """Which tokens a unit runs for. needs_update: whether it must know F(u) first.

    Called with the unit, u [B, T, D], F(u) (None unless needed) and `real` [B, T], False on
    padding if known; gives g_0 [B, T], 1 where the unit runs.
    """

    needs_update: ClassVar[bool]

    def __call__(
        self, unit: RoutedUnit, u: Tensor, update: Tensor | None, real: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class Learned:
    """The routers decide, by argmax."""

    needs_update: ClassVar[bool] = False

    def __call__(self, unit: RoutedUnit, u: Tensor, update: Any, real: Tensor) -> Tensor:
        return unit.token_router(u).argmax(-1) == EXECUTE


@dataclass
class Sampled:
    """The routers decide by a hard Gumbel-softmax, straight-through: for training."""

    tau: float = 1.0
    generator: torch.Generator | None = None
    needs_update: ClassVar[bool] = True  # both branches carry gradient to the router

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "tau")

    def __call__(self, unit: RoutedUnit, u: Tensor, update: Any, real: Tensor) -> Tensor:
        logits = unit.token_router(u)
        noise = -torch.empty_like(logits).exponential_(generator=self.generator).log()
        soft = ((logits + noise) / self.tau).softmax(-1)[..., EXECUTE]
        return (soft > 0.5).to(soft) + soft - soft.detach()


@dataclass
class Lowest:
    """A share of each row's tokens is approximated, those with the lowest score.

    by: "error", the forecaster's, an oracle that must compute F(u); "update", the size of F(u),
    greedy importance; "random". sparsity: the share, rounded to whole tokens.
    """

    by: str
    sparsity: float
    generator: torch.Generator | None = None
    needs_update: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of("Lowest.by", self.by, ("error", "update", "random"))
        within(self, "[0, 1]", "sparsity")

    def __call__(self, unit: RoutedUnit, u: Tensor, update: Any, real: Tensor) -> Tensor:
        if self.by == "error":
            score = (update.float() - unit.forecaster(u).float()).norm(dim=-1)
        elif self.by == "update":
            score = update.float().norm(dim=-1)
        else:
            score = torch.rand(u.shape[:-1], generator=self.generator).to(u.device)
        return ~lowest(score, self.sparsity, real)


def lowest(score: Tensor, share: float, real: Tensor) -> Tensor:
    """bool [B, T]: the tokens with the lowest scores, a share of each row's real tokens."""
    count = (real.sum(-1, keepdim=True) * share).round()
    order = score.masked_fill(~real, torch.inf).argsort(dim=-1, stable=True)
    return (order.argsort(dim=-1) < count) & real


def oracle_route(errors: Tensor, sparsity: float, real: Tensor | None = None) -> Tensor:
    """bool [B, T], True where the unit runs: the best routing by the errors of its forecaster."""
    return ~lowest(errors, sparsity, torch.ones_like(errors).bool() if real is None else real)


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
    """How the units of one model choose; records: where each forward leaves what they did. real,
    seen: which columns are none, as `recording` was told, and as the forward under way was."""

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
        """g_0 F(u) + g_1 LFF(u). update: F(u), or None to compute it where it is used."""
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


class AttachedRouting(Attached):
    """Informed routing on a model. Padding, as the forward's `attention_mask` [B, T] has it, counts
    in no share.

    rule: which tokens run, for every forward from now on (`Learned()` once routers are trained);
    None: all. mode: "approximate" or "skip".
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
        """Within: every forward appends a `Record` for each unit. attention: [B, T] of the batch,
        so that padding is left out of shares and rates."""
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


@dataclass(frozen=True)
class UnitReport:
    """One unit on some text: how often it runs, and how well its forecaster predicts it: r2, the
    share of the update's variance, and error, the mean |F(u) - LFF(u)| / |F(u)|."""

    layer: int
    kind: str
    execute_rate: float
    r2: float
    error: float


@torch.no_grad()
def routing_report(attached: AttachedRouting, batches: Iterable[Any]) -> list[UnitReport]:
    """A line for each unit. batches: ids [B, T], or mappings with input_ids and attention_mask.
    Rates are those of the rule that is set."""
    sums: dict[tuple[int, str], Tensor] = {}
    for batch in batches:
        for record, real in recorded(attached, batch):
            assert record.update is not None
            unit = attached.units[2 * record.location.layer + (record.location.kind == MLP)]
            update = record.update[real].double()
            error = update - unit.forecaster(record.u[real]).double()
            ran = record.execute[real].double().sum()
            ratio = (error.norm(dim=-1) / update.norm(dim=-1).clamp_min(1e-12)).sum()
            count = torch.tensor(len(update), dtype=torch.double, device=ran.device)
            parts = [ran, ratio, error.square().sum(), update.square().sum(), count]
            found = torch.cat([torch.stack(parts), update.sum(0)])
            key = (record.location.layer, record.location.kind)
            sums[key] = sums[key] + found if key in sums else found
    if not sums:
        raise InputError("there is no batch to report on")
    reports = []
    for (layer, kind), total in sums.items():
        ran, ratio, error, square, count = total[:5].tolist()
        variance = square - float(total[5:].square().sum()) / count
        r2 = 1 - error / max(variance, 1e-30)
        reports.append(UnitReport(layer, kind, ran / count, r2, ratio / count))
    return reports


def recorded(attached: AttachedRouting, batch: Any) -> Iterator[tuple[Record, Tensor]]:
    """Forward one batch; every unit's record, and the mask [B, T] of the real tokens."""
    ids, attention = batch_parts(batch)
    with attached.recording(attention) as records:
        attached.model(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=1)
    while records:
        yield records.pop(0), attention.bool()


def batch_parts(batch: Any) -> tuple[Tensor, Tensor]:
    """ids and attention mask of a batch given as ids [B, T] or as a mapping."""
    if isinstance(batch, Tensor):
        return batch, torch.ones_like(batch)
    ids = batch["input_ids"]
    attention = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(ids)
    return ids, attention


def sparsity_loss(execute: Sequence[Tensor], target: float, weight: float = 8.0) -> Tensor:
    """weight |(1 - target) - rho|. execute: the mean of g_0 of each unit; rho: their mean."""
    rho = torch.stack([part.float() for part in execute]).mean()
    return weight * (1 - target - rho).abs()


def turn_loss(records: Sequence[Record]) -> Tensor:
    """Mean over units of sum g_1 (1 - cos(x, x + F(u))) / (sum g_1 + 1): what is approximated
    should not turn the residual much."""
    parts = []
    for record in records:
        assert record.turn is not None
        away = 1 - record.execute.float()
        parts.append((away * (1 - record.turn)).sum() / (away.sum() + 1))
    return torch.stack(parts).mean()
