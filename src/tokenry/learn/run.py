"""Training runs: from an objective's name and a file of preferences to a folder with the model.

`train` is what `tokenry train` calls. It checks everything that can be checked before the first
step, and leaves in the output folder the model (or adapter), its tokenizer, the checkpoints, and
`run.json`, the record of what was run on what with which result.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from tokenry.core.errors import InputError, NonFiniteError
from tokenry.learn.checkpoints import check_resumable, last_checkpoint
from tokenry.learn.compute import missing_source
from tokenry.learn.data import (
    SUPERVISED,
    PreferenceCollator,
    as_dataset,
    further_columns,
    read_rows,
)
from tokenry.learn.data.precompute import PrecomputeContext, precompute
from tokenry.learn.data.rows import completion_rows, template_hash
from tokenry.learn.limits import Limits, fitting
from tokenry.learn.objective import (
    PAIR,
    Objective,
    check_hooks,
    data_columns,
    frozen_sources,
    is_on_policy,
)
from tokenry.learn.objective import objective as objectives
from tokenry.learn.policy.rollouts import RewardFunction, RolloutSettings
from tokenry.learn.policy.sampled import Sampled
from tokenry.learn.record import (
    RECORD,
    check_same_run,
    code_hashes,
    fingerprint,
    first_process,
    name_or_full_path,
    plain_fields,
    provenance,
    record_the_end,
    versions,
    write_record,
)
from tokenry.learn.reference import (
    FrozenModel,
    Reference,
    ReferenceKind,
    WithoutAdapter,
    load_reference,
)
from tokenry.learn.rewards.scoring import Rewards
from tokenry.learn.settings import (
    DATA_DEFAULTS,
    LEARNING_RATES,
    LORA_DEFAULTS,
    build_objective,
    check_lora_targets,
    lora_config,
    read_config,
    sort_settings,
    training_arguments,
)
from tokenry.learn.start import AdapterMode, has_adapter, precision, save_base, start_from
from tokenry.learn.user_code import user_objective
from tokenry.model.hub import load

BASE = "base"


@dataclass(frozen=True)
class TrainedRun:
    """What a run left: its folder, its record (also in run.json), the model and tokenizer."""

    output: Path
    record: dict[str, Any]
    model: Any
    tokenizer: Any


def train(
    objective: str | Objective,
    data: Any,
    model: Any = "smollm2",
    output: str | Path = "trained",
    *,
    config: str | Path | dict[str, Any] | None = None,
    lora: bool | dict[str, Any] = False,
    adapter: AdapterMode | None = None,
    eval_data: Any = None,
    reference: Any = "auto",
    frozen: Mapping[str, Any] | None = None,
    rewards: Sequence[str | RewardFunction] = (),
    resume: bool = False,
    seed: int = 0,
    callbacks: Sequence[Any] | None = None,
    **settings: Any,
) -> TrainedRun:
    """Train a model on texts, preference pairs or its own samples, and save it to `output`.

    objective: a key of the catalogue ("tdpo"), "file.py:name" of an objective value or class, or an
    objective value.
    data, eval_data: a file, a folder, or rows, in any form that `learn.data` reads.
    model: what `tokenry.load` takes, or a (model, tokenizer) pair.
    reference: see `ObjectiveTrainer`, or a folder or several (their weights are averaged).
    frozen: further frozen models by the names that the objective uses: folders, hub ids, models.
    rewards: for on-policy objectives, functions (prompt, completion) -> number, or of TRL's form
    (prompts, completions, **columns) -> list, as values, "file.py:name", or the name of one of the
    catalogue, with arguments where it takes some: "numeric_answer", "soft_overlong(longest=64)".
    config: YAML file or mapping whose keys are hyper-parameters of the objective (beta, ...),
    fields of transformers' TrainingArguments (learning_rate, num_train_epochs, ...),
    `max_length`, `truncate`, `as_chat`, `data_format` (one of `learn.data.kinds`), `bad_rows`
    ("error" or "skip"), fields of RolloutSettings, `dropout` (False by default: it is off while
    training, see `ObjectiveTrainer`), and mappings `lora` (peft.LoraConfig fields) and `frozen` and
    the list `rewards`. settings: the same keys, stronger than config. lora: True, or such a
    mapping, trains an adapter.
    adapter: for a model that comes with one. "continue" (the default) trains it further, held to
    what it was; "merge" makes it part of the weights, which are trained, or with `lora` saved as
    `output`/base under a new adapter; "stack" trains a new adapter above it and saves the two as
    one. The result's adapter is for the base that its configuration names.
    resume: go on from the folder's last complete checkpoint, or from the start if it has none.

    Raises InputError for data or settings that cannot be used and for an output folder that is not
    empty (unless resume), UnknownNameError with the nearest names for an unknown one.
    """
    output = Path(output)
    kind, built, chosen = _chosen(objective, {**read_config(config), **settings})
    rollout = RolloutSettings(**chosen["rollout"])
    rollout = rollout.of(built)
    if rollout.share is not None and not is_on_policy(built):
        wrap: Any = Sampled
        built = wrap(built)
    given = {**chosen["lora"], **(lora if isinstance(lora, dict) else {})}
    wants_lora = bool(lora) or bool(given) or adapter == "stack"
    _check_output(output, resume)
    checkpoint = last_checkpoint(output) if resume else None
    if checkpoint is not None:
        check_resumable(checkpoint)
    functions = _rewards([*chosen["rewards"], *rewards], built, rollout)
    arguments = training_arguments(
        output, chosen["training"], wants_lora, seed, eval_data is not None
    )
    lora_settings = lora_config(given) if wants_lora else None
    policy, tokenizer = load(model) if isinstance(model, str | Path) else model
    dtype, fingerprints = policy.dtype, {"model": fingerprint(policy)}
    start = start_from(policy, adapter, lora_settings, given)
    policy = start.model
    if start.lora is not None:
        check_lora_targets(start.lora, policy)
    if start.adapter == "continue" and "learning_rate" not in chosen["training"]:
        arguments.learning_rate = LEARNING_RATES["lora"]
    if start.adapter == "merge" and start.lora is not None:
        policy.name_or_path = policy.config._name_or_path = str((output / BASE).absolute())
    named = {**chosen["frozen"], **(frozen or {})}
    others = _frozen_models(named, built)
    anchor: Any = load_reference(reference)
    for name, source in {"reference": anchor, **others}.items():
        if isinstance(source, FrozenModel):
            fingerprints[name] = fingerprint(source.model)

    from tokenry.learn.trainer import ObjectiveTrainer

    context = PrecomputeContext(
        tokenizer,
        policy,
        _before_training(anchor, policy),
        others,
        seed,
        arguments.per_device_eval_batch_size,
    )
    reading = DATA_DEFAULTS | chosen["data"]
    limits = Limits.of(policy)
    limits.check_padding(PreferenceCollator.of(tokenizer).pad_id)
    dataset, where_from = _dataset(data, built, context, reading, rollout, limits, functions)
    heldout, heldout_from = None, None
    if eval_data is not None:
        heldout, heldout_from = _dataset(
            eval_data, built, context, reading, rollout, limits, functions
        )
    record = {
        "state": "running",
        "objective": next((e.key for e in objectives if e.value is kind), kind.__name__),
        "hyperparameters": plain_fields(built),
        "model": name_or_full_path(model) if isinstance(model, str | Path) else policy.name_or_path,
        "adapter": start.adapter,
        "reference": _named(reference),
        "frozen": {name: _named(value) for name, value in named.items()},
        "fingerprints": fingerprints,
        "rewards": functions.names,
        "code": code_hashes([objective, *chosen["rewards"], *rewards, rollout.source]),
        "rollout": chosen["rollout"] | _source_of(chosen["rollout"]),
        "dropout": chosen["loop"].get("dropout", False),
        "reading": reading | {"template": template_hash(tokenizer)},
        "data": where_from,
        "eval_data": heldout_from,
        "dtype": precision(dtype, arguments),
        "lora": LORA_DEFAULTS | given if start.lora is not None else None,
        "training": {
            **{k: v for k, v in chosen["training"].items() if k != "hub_token"},
            "learning_rate": arguments.learning_rate,
            "seed": seed,
        },
        "versions": versions(),
    }
    if resume:
        check_same_run(output, record)
        record["resumed_from"] = checkpoint and Path(checkpoint).name
    existed, trainer = output.exists(), None
    try:
        if start.adapter == "merge" and start.lora is not None and first_process():
            save_base(output / BASE, policy, tokenizer)
        trainer = ObjectiveTrainer(
            policy,
            built,
            lora=start.lora,
            start=start,
            reference=anchor,
            frozen=others,
            rewards=functions,
            rollout=rollout,
            **chosen["loop"],
            args=arguments,
            train_dataset=dataset,
            eval_dataset=heldout,
            data_collator=PreferenceCollator.of(
                tokenizer,
                _completions(built, rollout),
                _columns(built),
                prompts=is_on_policy(built),
            ),
            processing_class=tokenizer,
            callbacks=list(callbacks or ()),
        )
        output.mkdir(parents=True, exist_ok=True)
        write_record(output, record)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        final = _final_evaluation(trainer) if heldout is not None else {}
        trainer.check_result()
        trainer.save_model(str(output))
    except BaseException as error:
        steps = 0 if trainer is None else trainer.state.global_step
        if isinstance(error, NonFiniteError) or steps or resume:
            record_the_end(output, record, trainer, error)
        elif first_process():  # a start that failed
            (output / RECORD).unlink(missing_ok=True)
            if not existed:
                shutil.rmtree(output, ignore_errors=True)
        raise
    finally:
        functions.close()
    record |= {
        "state": "finished",
        "seconds": round(time.perf_counter() - started, 2),
        "steps": trainer.state.global_step,
        "history": [dict(entry) for entry in trainer.state.log_history],
        "evaluation": {k: v for k, v in final.items() if isinstance(v, float)},
        "reward_counts": {name: dict(counts) for name, counts in functions.counts.items()},
    }
    write_record(output, record)
    return TrainedRun(output, record, trainer.model, tokenizer)


def _chosen(objective: Any, settings: dict[str, Any]) -> tuple[Any, Any, dict[str, dict[str, Any]]]:
    """The objective's class, the objective as it was set, and every setting by its owner."""
    if isinstance(objective, str) and ".py:" in objective:
        objective = user_objective(objective)
    known = objectives[objective] if isinstance(objective, str) else objective
    kind = known if isinstance(known, type) else type(known)
    check_hooks(kind)
    chosen = sort_settings(settings, kind)
    given = isinstance(objective, str | type)
    make = kind if given else partial(_changed, objective)
    return kind, build_objective(make, chosen["objective"]), chosen


def _named(value: Any) -> Any:
    """A reference or frozen model as the record names it."""
    if isinstance(value, str) and value in get_args(ReferenceKind):
        return value
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    return (
        name_or_full_path(value) if isinstance(value, str | Path) else f"<{type(value).__name__}>"
    )


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; choose a folder for the output")
    if resume and not (output / RECORD).is_file():
        raise InputError(f"there is no run to resume in {output}: it has no {RECORD}")
    if first_process() and not resume and output.is_dir() and any(output.iterdir()):
        raise InputError(
            f"the output folder {output} exists and is not empty: choose another one, or resume "
            "the run that it holds"
        )


def _changed(objective: Any, **values: Any) -> Any:
    """The objective with other hyper-parameters; one that is no dataclass has none."""
    return dataclasses.replace(objective, **values) if values else objective


def _rewards(given: list[Any], objective: Any, rollout: RolloutSettings) -> Rewards:
    if given and not is_on_policy(objective):
        raise InputError(
            f"{type(objective).__name__} learns from the data's completions and has no use for "
            "rewards"
        )
    return rollout.rewards(given)


def _frozen_models(given: Mapping[str, Any], objective: Any) -> dict[str, Reference]:
    known = frozen_sources(objective)
    for name in given:
        if name not in known:
            raise InputError(
                f"{type(objective).__name__} has no use for a frozen model {name!r}"
                + (f"; it needs {', '.join(known)}" if known else "")
            )
    for name in known:
        if name not in given:
            raise missing_source(objective, name)
    for name, value in given.items():
        if not isinstance(value, str | Path) and not callable(value):
            raise InputError(
                f"the frozen model {name!r} must be a folder, a name or a reference, got {value!r}"
            )
    return {
        name: FrozenModel(load(value).model.requires_grad_(False))
        if isinstance(value, str | Path)
        else value
        for name, value in given.items()
    }


def _before_training(reference: Any, policy: Any) -> Reference:
    """The reference while nothing is trained yet: but for the bare base it is the policy."""
    if not isinstance(reference, str):
        return reference
    return (
        WithoutAdapter(policy)
        if reference == "adapter" and has_adapter(policy)
        else FrozenModel(policy)
    )


def _dataset(
    source: Any,
    objective: Any,
    context: PrecomputeContext,
    reading: dict[str, Any],
    rollout: RolloutSettings,
    limits: Limits,
    rewards: Rewards,
) -> tuple[Any, dict[str, Any]]:
    """What the objective trains on, with its columns, and where it came from."""
    sampled, supervised = is_on_policy(objective), objective.supervised
    alone = sampled and not rollout.from_data
    given = (supervised and not sampled) or (sampled and not alone)
    kinds = SUPERVISED if given else ("prompt",) if sampled else ("preference",)
    own = supervised or sampled
    completions = _completions(objective, rollout) if own else objective.required_completions
    # max_length leaves room behind a prompt for what is sampled: `fitting` knows how much that is
    options: dict[str, Any] = {**reading, **({"max_length": None} if alone else {})}
    kind = options.pop("data_format")
    read = read_rows(
        source,
        context.tokenizer,
        kinds[0] if kind == "auto" and len(kinds) == 1 else kind,
        accepts=kinds,
        completions=PAIR if own else completions,
        **options,
    )
    rows, skipped = fitting(
        completion_rows(read.rows) if given else read.rows,
        limits,
        completions,
        read.skipped,
        bad_rows=reading["bad_rows"],
        new_tokens=rollout.max_new_tokens if sampled else 0,
        max_length=reading["max_length"],
        truncate=reading["truncate"],
    )
    where_from = provenance(read, rows, skipped)
    rows = precompute(objective, rows, context)
    completions = _completions(objective, rollout)
    named, every = rewards.columns(rows)
    further = further_columns(rows, named, every) if named or every else None
    dataset = as_dataset(rows, completions, _columns(objective), further)
    for row in rows:
        limits.check_row(row, completions, rollout.max_new_tokens if sampled else 0)
    return dataset, where_from


def _completions(objective: Any, rollout: RolloutSettings) -> tuple[str, ...]:
    if is_on_policy(objective):
        return ("completion",) if rollout.from_data else ()
    return objective.completions


def _source_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The rollout source, where one is set, as the record names it."""
    source = settings.get("source")
    if source is None or isinstance(source, str):
        return {}
    simple = {k: v for k, v in vars(source).items() if isinstance(v, int | float | str | None)}
    return {"source": {"kind": type(source).__name__, **simple}}


def _columns(objective: Any) -> tuple[str, ...]:
    """The data's columns; those of an on-policy objective come from its rollouts."""
    return () if is_on_policy(objective) else data_columns(objective)


def _final_evaluation(trainer: Any) -> dict[str, float]:
    """The metrics of the last step; evaluates unless the last epoch's end just did."""
    done = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if done and done[-1]["step"] == trainer.state.global_step:
        return done[-1]
    return trainer.evaluate()
