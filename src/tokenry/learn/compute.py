"""From models to what an objective asked for: each need computed once, nothing else computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.core.scores import Scores
from tokenry.learn.objective import (
    DATA,
    NAMED_DIVERGENCE,
    Loss,
    Objective,
    check_needs,
    data_columns,
    view_and_need,
)
from tokenry.learn.reference import Reference
from tokenry.model.score import score


@dataclass(frozen=True)
class Computed:
    """What an objective is called with. others: scores of further frozen models, and modules."""

    policy: Scores
    reference: Scores | None
    others: dict[str, Any] = field(default_factory=dict)

    def about(self, batch: TokenBatch) -> TokenBatch:
        """The batch with the targets that were chosen, where the objective has a selector."""
        same = self.policy.mask.shape == batch.target.shape
        return replace(batch, target=self.policy.mask) if same else batch


def compute_scores(
    objective: Objective,
    batch: TokenBatch,
    model: Any,
    reference: Reference | None = None,
    *,
    frozen: Mapping[str, Reference] | None = None,
    modules: Any = None,
    needs: Collection[str] | None = None,
    temperature: float = 1.0,
    grad: bool = True,
    also: tuple[str, ...] = (),
) -> Computed:
    """The scores that `objective` (and `also`) need.

    frozen: further frozen models by the names that the needs use. modules: the objective's own
    weights. needs: other needs than the objective's (those of a rollout). temperature: at which the
    batch was sampled, > 0; all models are scored at it, but on views of other texts (`View`), which
    were not. also: further needs, for metrics. Raises InputError for a need that nothing computes,
    and when a model or a column of the data is missing.
    """
    wanted = {*check_needs(objective), *also} if needs is None else {*needs}
    if needs is None:
        for need in data_columns(objective):
            batch.column(need.partition(".")[2])
    selector = objective.selector if needs is None else None
    if selector is not None and all(need.partition(".")[0] in DATA for need in selector.needs):
        # what the data say is known before any model has read the batch
        batch = replace(batch, target=batch.target & selector(batch, {}))
        selector = None
    by_view: dict[str, set[str]] = {"": set()}
    for need in wanted:
        view, plain = view_and_need(need)
        by_view.setdefault(view, set()).add(plain)
    compared = {name for need in by_view[""] if "@" in (name := _compared_with(need) or "")}
    for name in compared:  # what the policy is compared with, under another conditioning
        source, _, view = name.partition("@")
        by_view.setdefault(view, set()).add(f"{source}.hidden")
    sources = {"reference": reference, **(frozen or {})}
    others: dict[str, Any] = {}
    if len(by_view) > 1:
        views = objective.views(batch, modules)
        for name in sorted(by_view.keys() - {""}):
            if name not in views:
                raise InputError(f'{type(objective).__name__} needs the view "{name}" and has none')
            view = views[name]
            learned = grad and any(view_and_need(need)[0] == name for need in wanted)
            heat = temperature if view.aligned else 1.0
            scores = _scored(
                objective, view.batch, model, sources, by_view[name], modules, learned, heat
            )
            if view.aligned:
                scores = {k: v.placed_on(batch.ids, batch.target) for k, v in scores.items()}
            else:
                others[f"batch@{name}"] = view.batch
            others |= {f"{source}@{name}": scored for source, scored in scores.items()}
    known = {name: others[name].detach() for name in compared}
    scores = _scored(
        objective, batch, model, sources, by_view[""], modules, grad, temperature, known, selector
    )
    policy, own = scores.pop("policy", None), scores.pop("reference", None)
    others |= scores
    if modules is not None:
        others["modules"] = modules
    return Computed(policy or Scores(batch.ids, batch.target), own, others)


def _scored(
    objective: Any,
    batch: TokenBatch,
    model: Any,
    sources: Mapping[str, Reference | None],
    needs: Collection[str],
    modules: Any,
    grad: bool,
    temperature: float = 1.0,
    known: Mapping[str, Scores] | None = None,
    selector: Any = None,
) -> dict[str, Scores]:
    """The scores of one batch that these needs ask for, by source; the policy's last.

    known: those that are there already, for divergences from them. selector: of the targets that
    the policy's scores are about.
    """
    by_source: dict[str, list[str]] = {}
    statistics = [] if selector is None else selector.needs
    first = {need.partition(".")[2] for need in statistics if need.partition(".")[0] == "policy"}
    for need in sorted({*needs, *(n for n in statistics if n.partition(".")[0] != "policy")}):
        source, _, quantity = need.partition(".")
        by_source.setdefault(source, []).append(quantity)
    if selector is not None:
        by_source.setdefault("policy", [])
    known = known or {}
    at: dict[str, Any] = {} if temperature == 1.0 else {"temperature": temperature}
    for need in (*needs, *statistics):
        other = "reference" if need == "policy.divergence" else _compared_with(need)
        if other and other not in known:
            hidden = by_source.setdefault(other, [])
            hidden.extend({"hidden"} - set(hidden))
    scores: dict[str, Scores] = {}
    for source, quantities in by_source.items():
        if source in DATA or source == "policy":
            continue
        model_of = sources.get(source)
        if model_of is None:
            raise missing_source(objective, source)
        scores[source] = model_of(batch, tuple(quantities), **at, **_top_k(objective, quantities))
    if "policy" not in by_source:
        return scores
    policy = score(
        model,
        batch,
        needs=by_source["policy"],
        reference=scores.get("reference"),
        divergence=objective.divergence,
        others={**scores, **known},
        **at,
        **_top_k(objective, by_source["policy"]),
        prefix=objective.prefix(batch, modules),
        grad=grad,
        select=selector and (lambda seen: selector(batch, {**scores, **known, "policy": seen})),
        select_needs=first,
    )
    return scores | {"policy": policy}


def _compared_with(need: str) -> str | None:
    match = NAMED_DIVERGENCE.fullmatch(need)
    return match[1] if match else None


def _top_k(objective: Objective, quantities: Collection[str]) -> dict[str, int]:
    """How many likeliest tokens are wanted, where any are."""
    return {"top_k": objective.top_k} if "topk" in quantities else {}


def compute_loss(
    objective: Objective,
    batch: TokenBatch,
    model: Any,
    reference: Reference | None = None,
    *,
    frozen: Mapping[str, Reference] | None = None,
    modules: Any = None,
    temperature: float = 1.0,
    grad: bool = True,
) -> Loss:
    """The objective's loss of a batch under a model; the options are those of `compute_scores`."""
    scores = compute_scores(
        objective,
        batch,
        model,
        reference,
        frozen=frozen,
        modules=modules,
        temperature=temperature,
        grad=grad,
    )
    return objective(scores.about(batch), scores.policy, scores.reference, **scores.others)


def missing_source(objective: Any, source: str) -> InputError:
    """The error for a frozen model that an objective needs and was not given."""
    name = type(objective).__name__
    if source == "reference":
        return InputError(
            f"{name} needs a reference: pass a frozen model, an adapter to switch off, or "
            "precomputed log-probabilities"
        )
    return InputError(
        f'{name} needs the frozen model "{source}": pass it as frozen={{"{source}": ...}} '
        f"(on the command line: --frozen {source}=FOLDER)"
    )
