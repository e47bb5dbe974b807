"""STILL at laptop scale: what SmolLM2's attention gives, after some of its layers are linearised.

In every fourth layer softmax attention is replaced, and the new weights are taught, with the
pretrained ones frozen, what it gave on passages of module documentation: by STILL; by a window that
sees as many tokens, all older ones linear; and by almost nothing but linear attention (a query and
the four to seven tokens before it are exact). Measured on another passage. The rate of each way is
the better of two on the training passages. Also: whether self-saliency, which looks at 16 tokens,
ranks tokens as the attention does that they receive from the whole text.
"""

from typing import Any

import torch
from torch import Tensor

from tokenry.learn.recipes.still import AttentionTransfer, attention_transfer_loss
from tokenry.model.attention.hybrid import self_saliency
from tokenry.model.memory.still import Still, revert
from tokenry.papers.base import Measurement, Outcome, Paper
from tokenry.tasks.documentation import passages

MODULES = ("argparse", "collections", "csv", "datetime", "decimal", "inspect", "logging", "random")
LENGTH, TRAIN, STEPS, SCORED = 256, 3, 9, 64
RATES = (0.01, 0.03)
CHUNK, TOPK = 16, 2
# exact tokens of a query late in the text: STILL reads 17 to 32 of its chunks and up to 28 salient
# ones, 37 on average over the text; the window 27 to 52, 37 on average
WINDOW = 26
WAYS = ("STILL", "window + linear", "all linear")


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    ids = passages(tokenizer, LENGTH, TRAIN + 1, seed, MODULES)  # [TRAIN + 1, LENGTH]
    layers = tuple(range(2, model.config.num_hidden_layers, 4))
    policies = {
        "STILL": Still(CHUNK, TOPK, layers),
        "window + linear": Still(WINDOW, 0, layers),
        "all linear": Still(4, 0, layers),
    }
    dense = logprobs(model, ids[-1:])
    error: dict[str, float] = {}
    divergence: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    for way, policy in policies.items():
        tried = []
        for rate in RATES:
            hybrid = policy.convert(model, seed=seed)
            steps = AttentionTransfer(STEPS, rate).fit(hybrid, list(ids[:TRAIN].split(1)))
            with torch.no_grad():
                held_out = float(attention_transfer_loss(hybrid, ids[-1:])) / len(layers)
            kl = (dense.exp() * (dense - logprobs(hybrid, ids[-1:]))).sum(-1).mean()
            tried.append((sum(steps[-TRAIN:]), held_out, float(kl), steps))
            revert(model)
        _, error[way], divergence[way], losses[way] = min(tried, key=lambda run: run[0])
    correlation = saliency_correlation(model, ids[-1:], layers)
    measurements = [
        Measurement(f"attention output, {way}", error[way], "squared error", seed) for way in WAYS
    ]
    measurements += [
        Measurement(f"KL to softmax, {way}", divergence[way], "nats", seed) for way in WAYS
    ]
    measurements.append(
        Measurement("self-saliency and attention received", correlation, "Spearman", seed)
    )
    still, window, linear = (error[way] for way in WAYS)
    return Outcome(
        held=still < window < linear and divergence["STILL"] < divergence["window + linear"],
        needs="error(STILL) < error(window + linear) < error(all linear) of the attention's output "
        "on a passage not trained on, and KL(STILL) < KL(window + linear)",
        measurements=measurements,
        reason=(
            f"{len(layers)} of {model.config.num_hidden_layers} layers, {STEPS} steps of attention "
            "transfer, no second stage: it shows what the selection is worth, not the paper's "
            "accuracy on tasks, its recall at length or its speed."
        ),
        figure=lambda figure: draw(figure, losses, error, divergence),
    )


@torch.no_grad()
def logprobs(model: Any, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False, logits_to_keep=SCORED).logits[0].log_softmax(-1)


@torch.no_grad()
def saliency_correlation(model: Any, ids: Tensor, layers: tuple[int, ...]) -> float:
    """Spearman's rank correlation, over the tokens of a head, of self-saliency with the attention
    received per query that can see the token; the mean over heads and layers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    found: list[Tensor] = []
    sdpa = AttentionInterface()["sdpa"]

    def compared(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
    ):
        if module.layer_idx in layers:
            keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            logits = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
            future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
            received = logits.masked_fill(future, -torch.inf).softmax(-1).sum(2)
            received = received / torch.arange(LENGTH, 0, -1)
            score = self_saliency(query, keys, window=CHUNK)
            found.append(rank_correlation(score[0], received[0]))
        return sdpa(module, query, key, value, *rest, **options)

    name, before = "still_signal", model.config._attn_implementation
    AttentionInterface.register(name, compared)
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])
    try:
        model.set_attn_implementation(name)
        model(ids, use_cache=False, logits_to_keep=1)
    finally:
        model.set_attn_implementation(before)
    return float(torch.cat(found).mean())


def rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's, of rows [n, T]: [n]."""
    ranks = [states.argsort(-1).argsort(-1).float() for states in (left, right)]
    a, b = (rank - rank.mean(-1, keepdim=True) for rank in ranks)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def draw(
    figure: Any,
    losses: dict[str, list[float]],
    error: dict[str, float],
    divergence: dict[str, float],
) -> None:
    left, right = figure.subplots(1, 2)
    for way in WAYS:
        left.plot(losses[way], label=way)
        right.scatter(error[way], divergence[way], label=way)
    left.set(xlabel="step", ylabel="attention transfer loss", yscale="log")
    right.set(xlabel="squared error of the output", ylabel="KL to softmax (nats)")
    left.legend()


PAPER = Paper(
    number=143,
    key="still",
    title="STILL: Selecting Tokens for Intra-Layer Hybrid Attention to Linearize LLMs",
    arxiv="2602.02180",
    role="attention",
    family="efficiency",
    claim="Tokens that attend to themselves keep softmax attention, the others become a linear "
    "state; the linearised model recalls what a window with linear attention forgets.",
    reproduce=reproduce,
    threads=1,
)
