"""ObjectiveTrainer: `transformers.Trainer` that takes an objective as a value.

The trainer knows models, devices and data; the objective knows mathematics. Between them stands
`learn.compute`, which computes what the objective's `needs` name and nothing else. Everything the
Trainer does (checkpoints, reporters, LoRA, FSDP, DeepSpeed, `accelerate launch`) stays as it is.

Normalisation is exact: with n units (pairs, rows or tokens, as `Objective.unit` says) in this
micro-batch and N in all micro-batches and processes of the optimizer step, the gradient is that of
sum(n loss) / N, whatever the split. Evaluation adds sums and numbers up in the same way. A process
that has no row left for a batch takes part with one that counts nothing (`learn.loading`).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.utils.data import BatchSampler, SequentialSampler
from transformers.trainer_utils import EvalLoopOutput, seed_worker

from tokenry.core.batch import TokenBatch
from tokenry.core.checks import one_of
from tokenry.core.errors import InputError
from tokenry.decode.generate import ends
from tokenry.learn.compute import Computed, compute_scores, missing_source
from tokenry.learn.data import PreferenceCollator, batch_of
from tokenry.learn.finite import FiniteTrainer
from tokenry.learn.loading import (
    STAND_IN,
    CollateCounted,
    ProcessBatches,
    Rows,
    same_everywhere,
)
from tokenry.learn.objective import (
    Loss,
    Objective,
    Unit,
    check_hooks,
    count_units,
    every_need,
    frozen_sources,
    is_on_policy,
)
from tokenry.learn.policy.buffer import RolloutBuffer, joined, load_micro_batches, parted
from tokenry.learn.policy.draw_metrics import draw_metrics
from tokenry.learn.policy.rollouts import (
    RewardFunction,
    RolloutSettings,
    cut_short,
    keep_targets,
    reward_rollouts,
)
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.mixed import source_of
from tokenry.learn.reference import (
    FrozenModel,
    Precomputed,
    Reference,
    check_vocabulary,
    choose_reference,
    precompute_reference,
    reference_columns,
)
from tokenry.learn.rewards.scoring import Rewards
from tokenry.learn.settings import refusals
from tokenry.learn.start import (
    TRAINED_FOLDER,
    Start,
    has_adapter,
    save_stacked,
    starts_as_its_base,
    trained_in_float32,
)
from tokenry.model.modes import Dropout, dropouts, evaluating, switched_off
from tokenry.model.score import probe_logits, unwrap

MODULES_FILE = "objective.safetensors"
CPU_TOKENS_PER_PASS = 1024


class ObjectiveTrainer(FiniteTrainer):
    """Trains any causal language model on any objective.

    objective: what to minimise. lora: a `peft.PeftConfig`; the model is wrapped before training.
    reference: "auto" (the adapter's base with LoRA, else a frozen copy, nothing if not needed),
        "copy", "adapter", "precomputed" (reference log-probabilities are computed before training,
        or taken from the columns `reference_{chosen,rejected}_logprob`), or a `Reference` value.
    frozen: further frozen models, by the names that the objective's needs use.
    rewards, rollout: for on-policy objectives, reward functions (`learn.rewards.base`), and how
        completions are sampled and how often they are used; the collator then gives prompts
        (`PreferenceCollator(completions=())`). Checkpoints hold the rollouts that are still to be
        used.
    tokens_per_pass: forward and backward go through a micro-batch in pieces of this many tokens
        (padding included; at least one pair), with the same gradients and the memory of one piece.
        "auto" is 1024 on a CPU, where fresh memory is slow, and the whole micro-batch elsewhere.
    dropout: train with the model's and adapter's own dropout. By default every dropout probability
        is 0 during training: the policy is compared with itself (sampled from, log-probabilities
        of the moment of sampling, a reference that it starts from), so it has to be one function.
    start: where the model comes from, when its new adapter is stacked on one that it had.
    data_collator: makes the fields of a TokenBatch, and `reference_logprob` when precomputed.

    An objective's own weights (`modules`) are trained by the same optimizer and saved beside the
    model. Logged besides the loss: the objective's metrics, averaged over the units since the last
    log; in evaluation also "kl" and "entropy" per completion token; of rollouts what
    `learn.policy.draw_metrics` measures, at the steps that draw.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the whole optimizer step's units

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        lora: Any = None,
        reference: str | Reference = "auto",
        frozen: Mapping[str, Reference] | None = None,
        rewards: Rewards | Sequence[RewardFunction] = (),
        rollout: RolloutSettings | None = None,
        tokens_per_pass: int | Literal["auto"] | None = "auto",
        dropout: bool = False,
        start: Start | None = None,
        **options: Any,
    ):
        if not isinstance(dropout, bool):
            raise InputError(f"dropout must be true or false, got {dropout!r}")
        check_hooks(type(objective))
        one_of(f"{type(objective).__name__}.unit", objective.unit, get_args(Unit))
        needs = every_need(objective)
        on_cpu = next(model.parameters()).device.type == "cpu"
        automatic = CPU_TOKENS_PER_PASS if on_cpu else None
        self.tokens_per_pass = automatic if tokens_per_pass == "auto" else tokens_per_pass
        self.start = start
        self.frozen = dict(frozen or {})
        given = rollout or RolloutSettings()
        self.rollout = given.of(objective)
        self.rewards = rewards if isinstance(rewards, Rewards) else self.rollout.rewards(rewards)
        self.source = source_of(self.rollout)
        if given != RolloutSettings() and not is_on_policy(objective):
            raise InputError(
                f"{type(objective).__name__} learns from the data's completions and draws none: "
                f"{given} has no effect"
            )
        if objective.trains_policy and lora is None:
            model = trained_in_float32(model)
        if lora is not None:
            from peft import get_peft_model

            if has_adapter(model):
                raise InputError(
                    "the model has an adapter, which a new one would replace: leave lora out to "
                    "train it further, or merge or stack it first (`learn.start.start_from`)"
                )
            with refusals("lora settings"), torch.random.fork_rng():
                torch.manual_seed(options["args"].seed)  # the same adapter in every process and run
                model = get_peft_model(model, lora)
        self.objective = objective
        self.precomputed = reference == "precomputed"
        self.reference: Reference | None = (
            choose_reference(reference, model, needs, new_adapter=starts_as_its_base(lora))
            if isinstance(reference, str)
            else reference
        )
        sources = {"reference": self.reference, **self.frozen}
        missing = [name for name in frozen_sources(objective) if name not in self.frozen]
        if missing:
            raise missing_source(objective, missing[0])
        for name, source in sources.items():
            check_vocabulary(name, source, model)
        if not objective.trains_policy:
            model.requires_grad_(False)
        elif not any(weight.requires_grad for weight in model.parameters()):
            raise InputError("no weight of the model is trainable: call model.requires_grad_(True)")
        options["args"].remove_unused_columns = False  # rows are for the collator, not the model
        super().__init__(model, **options)
        self.modules: Any = objective.modules(self.model)
        if self.modules is not None:
            self.modules.to(self.args.device)
        if self.precomputed:
            self._precompute()
        for source in sources.values():
            other = getattr(source, "model", None)
            if other is not None and other is not self.model:
                other.to(self.args.device)
        self._since_log: dict[str, list[Tensor]] = defaultdict(list)
        self._of_evaluation: dict[str, list[Tensor]] = defaultdict(list)  # of its rollouts
        self._checkpoint: str | None = None
        self._buffer: RolloutBuffer | None = None
        self._random_state_restored = False
        policy: Any = self.model
        self.dropouts: list[Dropout] = [] if dropout else dropouts(policy)
        self._mode_checked = dropout

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch, scaled to its share of the optimizer step."""
        batch, reference = self._unpack(inputs)
        result: Loss = self._inside(model, lambda policy: self._loss(policy, batch, reference))
        loss, units = result.loss, self._units(inputs)
        self._check_finite({**result.metrics, "loss": loss})
        for name, total in result.totals(units).items():
            if name != "loss":  # the Trainer logs the loss itself
                self._since_log[name].append(total)
        if num_items_in_batch is not None:
            # Processes average their gradients: hence the factor of their number.
            loss = loss * (units * self.accelerator.num_processes / num_items_in_batch)
        return (loss, result) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of one optimizer step, and their units over all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.modules is not None:
            self.modules.zero_grad()  # the Trainer zeroes the model's gradients only
            self.modules.train()
        if is_on_policy(self.objective) and samples:
            samples = self._from_buffer(samples)
        units = sum(self._units(sample) for sample in samples)
        total: Any = self.accelerator.gather(torch.tensor([units], device=device))
        return samples, total.sum().clamp_min(1)

    def _from_buffer(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """This optimizer step's share of the rollouts, which are drawn when those at hand are used.

        The loader gives the prompts of a draw once for each step on it (`ProcessBatches.repeats`).
        """
        self._load_rng_state(self._checkpoint)  # a resumed run draws what it would have drawn
        draw, step = divmod(self.state.global_step, self.rollout.steps)
        if step == 0:
            policy: Any = self.model
            policy.train()  # the old log-probabilities are taken in the mode of the loss
            drawn = self._draw([self._prepare_inputs(sample) for sample in prompts], draw)
        elif self._buffer is None:  # resumed in the middle of it
            drawn = load_micro_batches(self._buffer_file(self._checkpoint), self.args.device)
        else:
            drawn = self._buffer.micro_batches
        seed = f"{self.args.seed}:{self.args.process_index}:{draw}"
        whole = self.objective.unit == "pair"
        self._buffer = RolloutBuffer(drawn, self.rollout.minibatches, whole, seed)
        return [fields | self._progress(fields["ids"]) for fields in self._buffer.step(step)]

    def _draw(self, prompts: list[dict[str, Any]], draw: int) -> list[dict[str, Any]]:
        """The rollouts of a step's prompts, drawn together, as micro-batches."""
        counted = [sample for sample in prompts if STAND_IN not in sample]
        pad_id = PreferenceCollator.of(self.processing_class).pad_id
        with self._chance(self.args.process_index, draw):
            fields = self._roll_out(joined(counted or prompts[:1], pad_id))
        sizes = [len(sample["prompts"]) * (STAND_IN not in sample) for sample in prompts]
        return parted(fields, sizes)

    @contextmanager
    def _chance(self, *place: Any) -> Iterator[None]:
        """Torch's generators inside are decided by the run's seed and the place alone: processes
        draw independently, evaluations disturb nothing, and a resumed run draws the same."""
        device = self.args.device
        others = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(others, device_type=device.type if others else "cuda"):
            text = ":".join(map(str, (self.args.seed, *place)))
            torch.manual_seed(random.Random(text).getrandbits(63))
            yield

    def _progress(self, ids: Tensor) -> dict[str, Tensor]:
        """How far the training is, in [0, 1], a column of every row."""
        return {"column.progress": torch.full_like(ids[:, 0], self._done, dtype=torch.float32)}

    @property
    def _done(self) -> float:
        return self.state.global_step / max(1, self.state.max_steps)

    def _buffer_file(self, checkpoint: str | None) -> Path:
        return Path(checkpoint or "") / f"rollouts-{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        """The state of randomness, and with it the rollouts that are still to be used."""
        super()._save_rng_state(output_dir)
        if self._buffer is not None and self.state.global_step % self.rollout.steps:
            self._buffer.save(self._buffer_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Once: the Trainer's own call, after the first batches, would undo what they drew."""
        if not self._random_state_restored:
            self._random_state_restored = True
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._checkpoint, self._buffer, self._random_state_restored = checkpoint, None, False

    def _units(self, inputs: dict[str, Any]) -> int:
        """Pairs, rows or tokens of a micro-batch that count."""
        if STAND_IN in inputs:
            return 0
        batch, selector = batch_of(inputs), self.objective.selector
        if selector is not None and self.objective.unit == "token":
            return selector.count(batch)
        return count_units(self.objective.unit, batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the objective's metrics since the last log, over all processes."""
        if self._since_log and "loss" in logs:
            sums = {name: torch.stack(values).sum(0) for name, values in self._since_log.items()}
            logs |= self._means(sums)
            self._since_log.clear()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Every metric over the whole set, exactly, and the KL and entropy per token."""
        model: Any = self.model_wrapped
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        if self.modules is not None:
            self.modules.eval()
        with evaluating(model):
            for place, inputs in enumerate(dataloader):
                inputs = self._prepare_inputs(inputs)
                if is_on_policy(self.objective):
                    with self._chance("evaluation", self.args.process_index, place):
                        inputs = self._roll_out(inputs)
                evaluate = partial(self._evaluate_batch, inputs=inputs)
                for name, total in self._inside(model, evaluate).items():
                    sums[name] += total.cpu()
                self.control = self.callback_handler.on_prediction_step(
                    self.args, self.state, self.control
                )
        for name, values in self._of_evaluation.items():
            if name not in sums:  # what the objective measures itself comes first
                sums[name] = torch.stack(values).sum(0)
        self._of_evaluation.clear()
        means = self._means(sums)
        rows = round(means.pop("rows"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self._check_finite(metrics, evaluating=True)
        return EvalLoopOutput(None, None, metrics, rows)  # type: ignore[arg-type]

    def _means(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Means from sums and numbers, [2] each, over all processes."""
        from accelerate.utils import gather_object

        names = sorted({name for names in gather_object([sorted(sums)]) for name in names})
        nothing = torch.zeros(2, dtype=torch.float64)
        own = torch.stack([sums.get(name, nothing).to(self.args.device) for name in names])
        total: Any = self.accelerator.reduce(own, reduction="sum")
        return {
            name: float(value / number.clamp_min(1))
            for name, (value, number) in zip(names, total, strict=True)
        }

    def _evaluate_batch(self, model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Sum and number of each metric; of the KL and the entropy per token, and of the rows."""
        batch, reference = self._unpack(inputs)
        whole = reference is not None and not isinstance(reference, Precomputed)
        also = ("policy.entropy", "policy.divergence") if whole else ("policy.entropy",)
        scores = self._scores(model, batch, reference, grad=False, also=also)
        result, units = self._apply(batch, scores), self._units(inputs)
        scored = scores.policy.mask
        metrics = {"entropy": scores.policy.need("entropy")[scored]}
        if whole:
            metrics["kl"] = scores.policy.need("divergence")[scored]
        groups = count_units("pair" if self.objective.unit == "pair" else "row", batch)
        rows = torch.tensor([groups if units else 0, 1], dtype=torch.float64)
        return result.totals(units) | Loss(result.loss, metrics).totals(units) | {"rows": rows}

    def _loss(self, model: Any, batch: TokenBatch, reference: Reference | None) -> Loss:
        return self._apply(batch, self._scores(model, batch, reference))

    def _scores(
        self, model: Any, batch: TokenBatch, reference: Reference | None, **options: Any
    ) -> Computed:
        on_policy = is_on_policy(self.objective) and self.objective.at_sampling_temperature
        return compute_scores(
            self.objective,
            batch,
            model,
            reference,
            frozen=self.frozen,
            modules=self.modules,
            temperature=self.rollout.temperature if on_policy else 1.0,
            **options,
        )

    def _apply(self, batch: TokenBatch, scores: Computed) -> Loss:
        batch = scores.about(batch)
        result = self.objective(batch, scores.policy, scores.reference, **scores.others)
        if not isinstance(result, Loss) or result.loss.ndim:
            what = f"a loss of shape {list(result.loss.shape)}" if isinstance(result, Loss) else ""
            raise InputError(
                f"{type(self.objective).__name__} must return a Loss with a scalar, not "
                + (what or type(result).__name__)
            )
        return result

    @torch.no_grad()
    def _roll_out(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Prompts -> sampled completions with rewards and what `prepare` makes of them."""
        tokenizer: Any = self.processing_class
        model = self.accelerator.unwrap_model(self.model)
        pad_id = PreferenceCollator.of(tokenizer).pad_id
        prompts = Prompts(
            inputs["prompts"],
            inputs["prompts_attention"],
            tuple(ends(unwrap(model), tokenizer)),
            pad_id,
            batch_of(inputs) if "ids" in inputs else None,
            self._done,
        )
        drawn = self.source(model, prompts, self.rollout)
        cut = cut_short(drawn, prompts.ends)
        if cut is not None:
            drawn = drawn.with_columns(cut=cut)
        data = inputs.get("data") or [{}]
        data = {name: [row[name] for row in data] for name in data[0]}
        separate = self.objective.num_rewards > 1
        batch = scored = reward_rollouts(drawn, tokenizer, self.rewards, data, separate=separate)
        batch = batch.with_columns(progress=self._progress(batch.ids)["column.progress"])
        needs = set(self.objective.rollout_needs)
        if "policy.logprob" in needs:
            needs.add("policy.entropy")  # for the log
        with switched_off(self.dropouts):  # the mode that the loss will be taken in
            scores = self._scores(model, batch, self.reference, needs=needs, grad=False)
        batch = self.objective.prepare(batch, scores.policy, scores.reference, **scores.others)
        if self.rollout.cut_completions == "leave_out" and cut is not None:
            finished = ~batch.column("cut")[:, None]
            batch = keep_targets(batch, finished.expand(batch.shape))
        if STAND_IN not in inputs:
            measured = draw_metrics(
                drawn,
                scored,
                batch,
                self.rewards.names,
                samples=self.rollout.samples,
                cut=cut,
                pass_reward=self.rollout.pass_reward,
                policy=scores.policy,
                reference=scores.reference,
            )
            log = self._since_log if model.training else self._of_evaluation
            for name, total in measured.items():
                log[name].append(total)
        fields = {"ids": batch.ids, "attention": batch.attention, "target": batch.target}
        columns = {f"column.{name}": column for name, column in batch.columns.items()}
        if STAND_IN in inputs or not batch.target.any():  # nothing to learn from was selected
            columns[STAND_IN] = torch.ones_like(batch.target[:, 0])
        return {**fields, "group": batch.group, **columns}

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """A loader of this process's rows, each row once (see `learn.loading`)."""
        accelerator, arguments = self.accelerator, self.args
        measured = hasattr(dataset, "__len__")
        sampler: Any = (sampler_fn(dataset) or SequentialSampler(dataset)) if measured else None
        config: Any = arguments.accelerator_config
        others = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        for wrong, what in (
            (sampler is None, "data without a length"),
            (isinstance(sampler, BatchSampler), "train_sampling_strategy='batch_rebalance'"),
            (config.split_batches or config.dispatch_batches, "split_batches, dispatch_batches"),
            (others > 1, "tensor, context and sequence parallelism"),
        ):
            if wrong:
                raise InputError(f"{what}: not supported, rows could not be counted exactly")
        batches = ProcessBatches(
            same_everywhere(sampler, arguments.data_seed),
            batch_size,
            accumulate=arguments.gradient_accumulation_steps if is_training else 1,
            processes=accelerator.num_processes,
            process=accelerator.process_index,
            repeats=self.rollout.steps if is_training and is_on_policy(self.objective) else 1,
            drop_last=is_training and arguments.dataloader_drop_last,
        )
        fewest = batches.smallest_step() * self.rollout.samples
        if is_training and self.rollout.minibatches > fewest:
            raise InputError(
                f"minibatches={self.rollout.minibatches}, but the smallest micro-batch of an epoch "
                f"has {fewest} completions: lower it, raise samples, or set dataloader_drop_last"
            )
        return DataLoaderShard(
            Rows(dataset),
            device=accelerator.device,
            batch_sampler=batches,
            collate_fn=CollateCounted(self.data_collator),
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory,
            persistent_workers=is_training and arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            worker_init_fn=partial(
                seed_worker,
                num_workers=arguments.dataloader_num_workers,
                rank=arguments.process_index,
            ),
        )

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimizer, with the objective's own weights as one more group."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        modules = [] if self.modules is None else self.modules.parameters()
        own = [weight for weight in modules if weight.requires_grad]
        if fresh and own:
            rate, decay = self.objective.modules_learning_rate, self.objective.modules_weight_decay
            group: dict[str, Any] = {"params": own, "lr": rate or self.args.learning_rate}
            group["weight_decay"] = self.args.weight_decay if decay is None else decay
            optimizer.add_param_group(group)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedule, unless it would train nothing: warm-up begins at the rate 0."""
        if num_training_steps == 1 and self.args.warmup_steps < 1:
            self.args.warmup_steps = 0  # a share of one step is none
        schedule = super().create_scheduler(num_training_steps, optimizer)
        if num_training_steps == 1 and not any(g["lr"] for g in self.optimizer.param_groups):  # type: ignore[union-attr]
            raise InputError(
                f"the only step has the learning rate 0 (warmup_steps is {self.args.warmup_steps}, "
                f"lr_scheduler_type {self.args.lr_scheduler_type}): nothing would be learned"
            )
        return schedule

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch, in passes of whole groups of rows whose gradients add up exactly.

        The modules' gradients are averaged over processes, as the wrapped model's are.
        """
        model.train()
        self._check_mode(model)
        total = torch.zeros((), device=self.args.device)
        passes = self._passes(inputs)
        for number, part in enumerate(passes, start=1):
            context = nullcontext() if number == len(passes) else self.accelerator.no_sync(model)
            with context, switched_off(self.dropouts):
                total += super().training_step(model, part, num_items_in_batch)
        if self.modules is not None and self.accelerator.sync_gradients:
            self._finish_modules(self.modules)
        return total

    @torch.no_grad()
    def _check_mode(self, model: Any) -> None:
        """Refuse, once, a model that is another function in training than in evaluation mode.

        Rollouts and references are of evaluation mode, the loss is of training mode.
        """
        if self._mode_checked:
            return
        self._mode_checked = True
        with switched_off(self.dropouts):
            trained = self._inside(model, probe_logits)
        with evaluating(model):
            evaluated = self._inside(model, probe_logits)
        off = float((trained - evaluated).abs().max() / evaluated.abs().max().clamp_min(1.0))
        dtype = next(model.parameters()).dtype
        if off > (1e-3 if dtype == torch.float32 and not self.args.bf16 | self.args.fp16 else 5e-2):
            raise InputError(
                f"in training mode the logits of {type(unwrap(model)).__name__} differ from those "
                f"of evaluation mode by {off:.2g} of their size, although its dropout is off "
                "(stochastic routing, batch normalisation?): log-probabilities taken in the two "
                "modes cannot be compared. dropout=True trains it as it is"
            )

    def _finish_modules(self, modules: Any) -> None:
        """What the Trainer does to the model's gradients before a step, for the modules'.

        They are clipped by a norm of their own.
        """
        gradients = [
            parameter.grad for parameter in modules.parameters() if parameter.grad is not None
        ]
        if self.accelerator.num_processes > 1:
            for gradient in gradients:
                gradient.copy_(self.accelerator.reduce(gradient, reduction="mean"))  # type: ignore[arg-type]
        if gradients:
            limit = self.args.max_grad_norm or torch.inf
            norm = torch.nn.utils.clip_grad_norm_(modules.parameters(), limit)
            self._check_finite({"the norm of the gradient of the objective's own weights": norm})

    def _passes(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """A micro-batch in pieces of at most `tokens_per_pass` tokens, at least one group each.

        A loss that is a mean over its units needs one group's activations at a time, not all.
        """
        batch = batch_of(inputs)
        separable = self.objective.separable
        if self.tokens_per_pass is None or batch.group is None or not separable:
            return [inputs]
        groups, place = batch.group.unique(return_inverse=True)
        rows_of_group = int(torch.bincount(place).max())
        size = max(1, self.tokens_per_pass // (rows_of_group * batch.shape[1]))
        wanted = [(place >= n) & (place < n + size) for n in range(0, len(groups), size)]
        return [{name: value[rows] for name, value in inputs.items()} for rows in wanted]

    def check_result(self) -> None:
        """Raise NonFiniteError when the trained weights are not finite, or their first loss is not.

        The last step is the one that no later loss has judged.
        """
        self._check_weights(self.modules)
        if is_on_policy(self.objective):
            return
        rows = range(min(len(self.train_dataset), self.args.per_device_eval_batch_size))  # type: ignore[arg-type]
        inputs = self._prepare_inputs(self.data_collator([self.train_dataset[n] for n in rows]))  # type: ignore[index]
        batch, reference = self._unpack(inputs)
        model: Any = self.model_wrapped
        if self.modules is not None:
            self.modules.eval()
        with evaluating(model):
            result = self._inside(model, lambda policy: self._loss(policy, batch, reference))
        self._check_finite({**result.metrics, "loss": result.loss}, evaluating=True)

    def _write(self, output_dir: str, state_dict: Any) -> None:
        self._check_weights(self.modules)
        super()._write(output_dir, state_dict)
        if not self.args.should_save:
            return  # one process writes what all of them hold
        if self.start is not None and self.start.below:
            save_stacked(Path(output_dir), self.start, self.model)
        if self.modules is not None:
            from safetensors.torch import save_file

            tensors = {
                k: v.detach().cpu().contiguous() for k, v in self.modules.state_dict().items()
            }
            save_file(tensors, Path(output_dir) / MODULES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        alone = Path(resume_from_checkpoint) / TRAINED_FOLDER  # of a stack: what is trained of it
        weights = str(alone) if alone.is_dir() else resume_from_checkpoint
        super()._load_from_checkpoint(weights, model)
        if self.modules is not None:
            from safetensors.torch import load_file

            path = Path(resume_from_checkpoint) / MODULES_FILE
            if not path.is_file():
                raise InputError(f"{path} is missing: this checkpoint is of another objective")
            self.modules.load_state_dict(load_file(path))

    def _unpack(self, inputs: dict[str, Any]) -> tuple[TokenBatch, Reference | None]:
        if not self.precomputed:
            return batch_of(inputs), self.reference
        if "reference_logprob" not in inputs:
            raise InputError("precomputed reference log-probabilities are missing from the batch")
        return batch_of(inputs), Precomputed(inputs["reference_logprob"])

    def _inside(self, wrapper: Any, function: Callable[[Any], Any]) -> Any:
        """function(plain model), run inside the wrapper's forward.

        DDP and FSDP prepare gradient synchronisation in their forward, and the objective does not
        use the model's own forward: for one call it is redirected.
        """
        plain = self.accelerator.unwrap_model(wrapper, keep_fp32_wrapper=True)
        with self.accelerator.autocast():
            if plain is wrapper:
                return function(plain)
            own = plain.__dict__.get("forward")

            def redirected() -> Any:
                restore()
                return function(plain)

            def restore() -> None:
                if own is not None:
                    plain.forward = own
                else:
                    plain.__dict__.pop("forward", None)

            plain.forward = redirected
            try:
                return wrapper()
            finally:
                restore()

    def _precompute(self) -> None:
        """Compute the reference's log-probabilities once, where the data do not have them."""
        teacher = FrozenModel(self.model)  # before training the policy is the reference
        columns = reference_columns(self.data_collator)
        for name in ("train_dataset", "eval_dataset"):
            data = getattr(self, name)
            if data is not None and not set(columns) <= set(data.column_names):
                size = self.args.per_device_eval_batch_size
                data = precompute_reference(data, self.data_collator, teacher, batch_size=size)
                setattr(self, name, data)
