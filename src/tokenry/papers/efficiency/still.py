"""STILL at laptop scale: what SmolLM2's attention gives, after some of its layers are linearised.

In every fourth layer softmax attention is replaced, and the new weights are taught, with the
pretrained ones frozen, what it gave on passages of module documentation: by STILL; by a window that
sees as many tokens, all older ones linear; and by almost nothing but linear attention (a query and
the four to seven tokens before it are exact). Measured on other passages. The rate of each way is
the better of two on the training passages. Also: whether self-saliency, which looks at 16 tokens,
ranks tokens as the attention does that they receive from the whole text.
"""

from __future__ import annotations

from statistics import fmean

import torch

from tokenry.lab.models import language_model
from tokenry.lab.outcome import Outcome, verdict
from tokenry.lab.plots import curves
from tokenry.lab.prompt_policies import mean_kl, saliency_correlation, tail_logprobs
from tokenry.lab.scale import Scale, at
from tokenry.lab.table import Table, paired
from tokenry.learn.recipes.still import AttentionTransfer, attention_transfer_loss
from tokenry.model.memory.still import Still, revert
from tokenry.papers.base import Paper
from tokenry.tasks.documentation import passages

RATES = (0.01, 0.03)
# exact tokens of a query late in the text: STILL reads 17 to 32 of its chunks and up to 28 salient
# ones, 37 on average over a text of 256; the window 27 to 52, 37 on average
CHUNK, TOPK, WINDOW = 16, 2, 26


def reproduce(seed: int, scale: Scale = "full") -> Outcome:
    train, tests, length, steps, scored, every = at(
        scale, full=(3, 5, 256, 6, 64, 4), smoke=(1, 2, 96, 2, 8, 2)
    )
    model, tokenizer = language_model(scale)
    texts = list(passages(tokenizer, length, train + tests, seed).split(1))
    taught, judged = texts[:train], texts[train:]
    layers = tuple(range(every // 2, model.config.num_hidden_layers, every))
    ways = {
        "STILL": Still(CHUNK, TOPK, layers),
        "window + linear": Still(WINDOW, 0, layers),
        "all linear": Still(4, 0, layers),
    }
    dense = [tail_logprobs(model, text, scored) for text in judged]
    error, kl, lines = {}, {}, {}
    for way, policy in ways.items():
        best = torch.inf
        for rate in RATES:
            hybrid = policy.convert(model, seed=seed)
            losses = AttentionTransfer(steps, rate).fit(hybrid, taught)
            if sum(losses[-train:]) < best:
                best, lines[way] = sum(losses[-train:]), enumerate(losses)
                with torch.no_grad():
                    transfer = [float(attention_transfer_loss(hybrid, text)) for text in judged]
                error[way] = [loss / len(layers) for loss in transfer]
                kl[way] = [
                    mean_kl(softmax, tail_logprobs(hybrid, text, scored))
                    for softmax, text in zip(dense, judged, strict=True)
                ]
            revert(model)
    table, (still, window, linear) = Table(), ways
    for way in ways:
        table.add(f"attention output, {way}", fmean(error[way]), "squared error", seed)
        table.add(f"KL to softmax, {way}", fmean(kl[way]), "nats", seed)
    ranks = [saliency_correlation(model, text, layers, CHUNK) for text in judged]
    table.add("self-saliency and attention received", fmean(ranks), "Spearman", seed)
    return verdict(
        table,
        {
            "STILL's attention output is nearer to that of softmax than with a window": paired(
                error[window], error[still]
            ),
            "with a window it is nearer than all linear": paired(error[linear], error[window]),
            "STILL's next-token distributions are nearer than with a window": paired(
                kl[window], kl[still]
            ),
        },
        reason=f"{len(layers)} of {model.config.num_hidden_layers} layers, {steps} steps of "
        "attention transfer, no second stage: it shows what the selection is worth, not the "
        "paper's accuracy on tasks, its recall at length or its speed.",
        plots=[curves(lines, "step", "attention transfer loss", log="y")],
    )


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
