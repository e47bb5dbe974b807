"""Objective: what every training objective is, and what it gives back.

An objective is a value (usually a frozen dataclass of hyper-parameters) that names what it needs
and turns scores into a loss. `learn.compute` computes just those needs; the objective never sees a
model, so it runs unchanged on toy tables, tiny models and real ones.

    needs, "source.quantity"  meaning, all aligned [B, T] like `batch.ids`
    policy.logprob            log pi(y_t | s_t), with gradient
    policy.entropy            entropy of pi(. | s_t), with gradient
    policy.divergence         D(reference || policy) at s_t over the whole vocabulary, gradient to
                              the policy only; D is the objective's attribute `divergence` (an
                              FDivergence, or a Comparison with a temperature and a top-k), by
                              default the forward KL
    policy.divergence(NAME)   the same from another frozen model
    policy.hidden             [B, T, D], the state that predicts y_t, with gradient, and the head
    policy.hidden_states      the same of every block
    reference.logprob         log pi_ref(y_t | s_t), no gradient; also entropy, hidden, ...
    reference.topk            its likeliest tokens, `topk_ids` and `topk_logprobs` [B, T, k], with
                              k the objective's attribute `top_k` (default 10)
    NAME.logprob              the same of any other frozen model, passed as `frozen={"NAME": ...}`
                              and handed to the objective as the keyword argument NAME
    policy@VIEW.logprob       the same of another batch, the `View` of that name (`views`), handed
                              over as the keyword "policy@VIEW"; any model, any quantity
    token.NAME                numbers of the data, one per token: `batch.column(NAME)`, [B, T]
    row.NAME                  numbers of the data, one (or n) per row: `batch.column(NAME)`, [B]
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tokenry.core.batch import TokenBatch
from tokenry.core.divergences import FORWARD_KL
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role
from tokenry.core.scores import Scores

POLICY = ("logprob", "entropy", "divergence", "hidden", "hidden_states", "topk")
FROZEN = ("logprob", "entropy", "hidden", "hidden_states", "topk")
NAMED_DIVERGENCE = re.compile(r"policy\.divergence\(([\w@]+)\)")
DATA = ("token", "row")

Unit = Literal["pair", "row", "token"]
PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and what to log about it.

    loss: scalar, the mean over the batch's units (see `Objective.unit`).
    metrics: detached float tensors, each a vector of values to average (one per unit, say), or a
        scalar that is already a mean. A metric named "loss" holds each unit's own loss.
    counts: what a scalar metric is a mean over, in number, where that is not the batch's units:
        the pairs that were compared, the tokens of one side. Means of several batches are weighted
        by it, so that they do not depend on how the data are split.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def totals(self, units: int) -> dict[str, Tensor]:
        """Sum and number of each metric's values, [2] float64 (the loss's too): these add up.

        units: of the batch; 0 for a batch that does not count.
        """
        return {
            name: _total(value, self.counts.get(name, units), bool(units))
            for name, value in {"loss": self.loss, **self.metrics}.items()
        }


def _total(value: Tensor, count: Tensor | int, counts: bool) -> Tensor:
    value = value.detach().double()
    if not counts:
        return value.new_zeros(2)
    if value.ndim:
        return torch.stack([value.sum(), value.new_tensor(value.numel())])
    number = torch.as_tensor(count, dtype=value.dtype, device=value.device)
    # a mean over nothing is no number that could count
    return torch.stack([torch.where(number > 0, value * number, 0.0), number])


class View(NamedTuple):
    """Another batch that is scored for an objective beside its own.

    aligned: it holds the same targets in the same order, behind other prompts, say; its scores then
    stand where the targets of the objective's own batch do. Else they stand where its own do, and
    the objective gets it as the keyword "batch@VIEW".
    """

    batch: TokenBatch
    aligned: bool = True


class Objective:
    """The role: the scores of a batch -> a loss L, the mean over units of what is to be minimised.

    Derive from it, name `needs` and `unit`, and write `__call__`; every other attribute is a hook,
    with the default that most objectives want.
    """

    needs: ClassVar[tuple[str, ...]]
    """What must be in the scores, in the words of the table above."""

    unit: ClassVar[Unit]
    """What the loss is a mean over; gradient accumulation and devices are weighted by it."""

    divergence: Any = FORWARD_KL
    """The `FDivergence`, or `Comparison`, behind "policy.divergence"."""

    top_k: int = 10
    """How many of the likeliest tokens "NAME.topk" holds."""

    completions: ClassVar[tuple[str, ...]] = PAIR
    """Which completions of a dataset row become rows of the batch, block after block: all first
    ones, then all second ones."""

    required_completions: ClassVar[tuple[str, ...]] = PAIR
    """Those that a row of the data must have."""

    supervised: ClassVar[bool] = False
    """Whether it learns from given texts ("text", "messages", "prompt" with "completion"), whose
    batches are these texts themselves."""

    separable: ClassVar[bool] = True
    """False when the loss couples the groups of a batch, so that it is not the mean of the losses
    of its parts; the contract test checks it."""

    at_reference: ClassVar[float | None] = None
    """The value of the loss when policy and reference agree, if it is a constant."""

    detaches: ClassVar[str] = ""
    """What it holds constant inside (a weight made of the policy's own log-probabilities), in
    words, when `stopped` cannot say it; the method's own tests check it."""

    rollout_needs: ClassVar[tuple[str, ...]] = ()
    """What is scored of fresh rollouts, without gradient, for `prepare`."""

    num_rewards: ClassVar[int] = 1
    """How many reward functions an on-policy objective mixes."""

    rollout_source: str = "plain"
    """The rollout source that an on-policy objective is about, unless another is set."""

    at_sampling_temperature: ClassVar[bool] = True
    """Whether an on-policy objective is about the distribution that its completions were sampled
    from: all models are then scored at that temperature. False: about the models themselves."""

    selector: Any = None
    """Which targets the loss is about, a `learn.selection.Selector`; None: all of them."""

    trains_policy: ClassVar[bool] = True
    """False keeps the policy's own weights as they are."""

    modules_learning_rate: ClassVar[float | None] = None
    """Of its own weights; None: that of the policy."""

    modules_weight_decay: ClassVar[float | None] = None
    """Of its own weights; None: that of the policy."""

    def __call__(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def stopped(self, batch: TokenBatch) -> dict[str, Tensor]:
        """need -> mask [B, T] of the entries through which no gradient flows, by design. The
        contract test checks it by finite differences that hold just these entries fixed."""
        return {}

    def precompute(self, rows: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Dataset rows with more columns `{completion}_{NAME}` for "token.NAME" and "row.NAME", or
        with more completions, computed once before training (`learn.data.precompute`)."""
        return rows

    def modules(self, model: Any) -> Any:
        """A module of further weights or running state (mask networks, heads, soft prompts),
        trained and saved beside the policy and handed over as the keyword `modules`; or None."""
        return None

    def prefix(self, batch: TokenBatch, modules: Any) -> Tensor | None:
        """Soft-prompt embeddings [B, n, D] that stand before the policy's rows."""
        return None

    def views(self, batch: TokenBatch, modules: Any) -> dict[str, View]:
        """{name: View}, the batches behind needs such as "policy@hinted.logprob"."""
        return {}

    def prepare(
        self, batch: TokenBatch, policy: Scores, reference: Scores | None, **others: Any
    ) -> TokenBatch:
        """Having it makes an on-policy objective. Completions are sampled from the policy,
        "row.reward" is filled in, `rollout_needs` are scored without gradient, and `prepare`
        returns the batch with the columns that the loss needs (advantages, old log-probabilities).
        """
        raise InputError(f"{type(self).__name__} does not learn from rollouts: no `prepare`")


Values = Callable[[TokenBatch, Tensor], Tensor]


class Example(NamedTuple):
    """An objective as its contract test takes it.

    columns: of the data that are not any numbers in (0, 1): what to make of such, [B] or [B, T];
        of an objective that learns from rollouts, those of its rollout source, or their rewards.
    """

    objective: Objective
    columns: Mapping[str, Values] = {}


HOOKS = {name for name in (*vars(Objective), *Objective.__annotations__) if name[0] != "_"}


def check_hooks(kind: type) -> None:
    """Refuse an attribute of an objective's class that nobody reads: a hook that is misspelt.

    A public attribute is a hook, or something that the class's own functions look up.
    Raises UnknownNameError with the nearest hooks, InputError for what is no objective.
    """
    if not issubclass(kind, Objective):
        raise InputError(
            f"{kind.__name__} is no objective: derive it from tokenry.learn.objective.Objective, "
            "which has the defaults of all hooks"
        )
    bases = kind.__mro__[:-1]
    names = {name for one in bases for name in (*vars(one), *inspect.get_annotations(one))}
    own = {name for one in bases if one is not Objective for name in _looked_up(one)}
    for name in sorted(names - own - HOOKS):
        if not name.startswith("_"):
            raise UnknownNameError(f"hook of the objective {kind.__name__}", name, HOOKS)


def _looked_up(kind: type) -> Iterator[str]:
    """Names in the code of a class's functions, but for those that dataclasses write."""
    for name, value in vars(kind).items():
        if name.startswith("__") and name not in ("__call__", "__post_init__"):
            continue
        for function in (value, *(getattr(value, at, None) for at in ("fget", "func", "__func__"))):
            code = [inspect.unwrap(function).__code__] if inspect.isfunction(function) else []
            while code:
                part = code.pop()
                yield from part.co_names
                code += [inner for inner in part.co_consts if isinstance(inner, CodeType)]


objective = Role(
    "objective",
    Objective,
    tuple(f"tokenry.learn.{part}" for part in ("preference", "policy", "pretraining", "rewards")),
    check=lambda entry: check_hooks(entry.value),
)


def is_on_policy(objective: Objective | type[Objective]) -> bool:
    """Whether an objective, or a class of them, learns from its policy's own samples."""
    kind = objective if isinstance(objective, type) else type(objective)
    return kind.prepare is not Objective.prepare


def count_units(unit: Unit, batch: TokenBatch) -> int:
    """How many units a batch holds: pairs (groups of rows), rows, or target tokens."""
    if unit == "pair":
        return len(batch.ids) // 2 if batch.group is None else len(batch.group.unique())
    return len(batch.ids) if unit == "row" else int(batch.target.sum())


def check_needs(objective: Objective) -> tuple[str, ...]:
    """The objective's needs, or an InputError that names the ones nobody can compute."""
    unknown = [need for need in objective.needs if not _can_be_met(need)]
    if unknown:
        raise InputError(
            f"{type(objective).__name__} needs {', '.join(unknown)}, which nothing computes; "
            f"possible needs: policy.{{{', '.join(POLICY)}}}, reference.{{{', '.join(FROZEN)}}} "
            "(or of another frozen model by its name), token.NAME and row.NAME of the data"
        )
    return tuple(objective.needs)


def every_need(objective: Objective) -> tuple[str, ...]:
    """What it needs in the loss, when sampling, and to choose its targets."""
    selector = objective.selector
    chosen_by = () if selector is None else selector.needs
    return (*check_needs(objective), *objective.rollout_needs, *chosen_by)


def frozen_sources(objective: Objective) -> tuple[str, ...]:
    """Names of the frozen models that it needs beside the reference."""
    needs = [view_and_need(need)[1] for need in every_need(objective)]
    names = {need.partition(".")[0] for need in needs}
    names |= {match[1] for need in needs if (match := NAMED_DIVERGENCE.fullmatch(need))}
    names = {name.partition("@")[0] for name in names}
    names -= {"policy", "reference", *DATA}
    return tuple(sorted(names))


def data_columns(objective: Objective) -> tuple[str, ...]:
    """The columns that it needs of the data, as "token.NAME" and "row.NAME"."""
    return tuple(need for need in objective.needs if need.partition(".")[0] in DATA)


def view_of(need: str, view: str) -> str:
    """The same need about another view: "policy.logprob" -> "policy@VIEW.logprob"."""
    source, dot, quantity = need.partition(".")
    return f"{source}@{view}{dot}{quantity}"


def view_and_need(need: str) -> tuple[str, str]:
    """("VIEW", "policy.logprob") of "policy@VIEW.logprob"; the view is "" for the batch itself."""
    source, dot, quantity = need.partition(".")
    source, _, view = source.partition("@")
    return view, f"{source}{dot}{quantity}"


def _can_be_met(need: str) -> bool:
    need = view_and_need(need)[1]
    source, dot, quantity = need.partition(".")
    if NAMED_DIVERGENCE.fullmatch(need):
        return True
    if source in DATA:
        return bool(quantity)
    return bool(dot) and quantity in (POLICY if source == "policy" else FROZEN)
