"""The trainer on completions that are known, for tests of what it makes of them."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from tokenry.learn.run import train

NOUNS = ("cat", "dog", "mat", "theory", "father", "age", "name", "feather")
PROMPTS = [{"prompt": f"the {noun}"} for noun in NOUNS]
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "optim": "sgd",
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "reward_timeout": None,
    "max_new_tokens": 8,
    "seed": 3,
}


@dataclass
class Given:
    """A rollout source that gives the n-th prompt the n-th list of completions, by its text."""

    tokenizer: Any
    completions: list[list[list[int]]]

    def __call__(self, policy, prompts, settings):
        of, rows = [], []
        for number, ids in enumerate(prompts.texts()):
            noun = self.tokenizer.decode(ids).removeprefix("the ")
            for completion in self.completions[NOUNS.index(noun)]:
                of.append(number)
                rows.append(completion)
        return prompts.batch(of, rows)


def rewarded(table):
    """A reward function that looks a completion's ids up."""

    def lookup(prompts, completions, completion_ids):
        return [table[tuple(ids)] for ids in completion_ids]

    return lookup


@dataclass
class Watch(TrainerCallback):
    """The gradient of every optimizer step, and the weights behind it."""

    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def run(goal, loaded, output, prompts=PROMPTS, **settings):
    """The finished run of a copy of the model, and its gradients."""
    model, tokenizer = loaded
    watch = Watch()
    options = {"callbacks": [watch], **QUIET, **settings}
    found = train(goal, prompts, (copy.deepcopy(model), tokenizer), output, **options)
    return found, watch.gradients


def logged(found, name):
    return [entry[name] for entry in found.record["history"] if name in entry]


def tempered(model, batch, temperature, quantity="logprob"):
    """From the model's own logits, row by row."""
    found = torch.zeros(batch.shape, dtype=next(model.parameters()).dtype)
    for row in range(len(batch.ids)):
        real = batch.attention[row]
        ids = batch.ids[row][real]
        logp = (model(ids[None]).logits[0].to(found.dtype) / temperature).log_softmax(-1)
        chosen = logp[:-1].gather(1, ids[1:, None])[:, 0]
        entropy = -(logp.exp() * logp).sum(-1)[:-1]
        value = chosen if quantity == "logprob" else entropy
        found[row, real.nonzero()[1:, 0]] = value
    return torch.where(batch.target, found, 0.0)
