"""What compressing a prompt costs: the loss of what follows it, by scorer and percent.

    python benchmarks/compress.py                    # SmolLM2, four passages of documentation
    python benchmarks/compress.py --scorers decompx  # takes longer

A passage of module documentation is cut into a prompt and the tokens that follow it. The prompt is
compressed by the same model that reads it; the following tokens are scored behind it, teacher
forced. Printed is the mean loss in nats per token, and the seconds that compressing a prompt took.
"""

import argparse
import pydoc
import time

import torch

import tokenry
from tokenry.core.batch import TokenBatch
from tokenry.model.attribution.base import attribution
from tokenry.model.attribution.frugalprompt import word_scores
from tokenry.model.score import score
from tokenry.text.compression import join, keep_top_percent, words

MODULES = ("argparse", "logging", "pathlib", "sqlite3", "statistics", "tarfile")
WORDS, SCORED = 120, 64


def passages(count: int) -> list[tuple[str, str]]:
    """Prompts of `WORDS` words from documentation, and what follows them."""
    found = []
    for name in MODULES[:count]:
        text = pydoc.plain(pydoc.render_doc(name))
        pieces = text[max(text.find("DESCRIPTION"), 0) :].split()
        following = " ".join(pieces[WORDS : WORDS + SCORED])
        found.append((" ".join(pieces[:WORDS]), f" {following}"))
    return found


def loss(model, tokenizer, prompt: str, following: list[int]) -> float:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else following[0]
    left = [start, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    target = [[False] * len(left) + [True] * len(following)]
    scores = score(model, TokenBatch.from_ids([[*left, *following]], target))
    return -float(scores.need("logprob")[0, len(left) :].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--percents", type=float, nargs="+", default=[80, 50])
    parser.add_argument("--scorers", nargs="+", default=["surprisal", "globenc"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = tokenry.load(arguments.model)
    texts = []
    for prompt, text in passages(arguments.passages):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts.append((prompt, ids[:SCORED]))

    def mean(prompts: list[str]) -> float:
        losses = [
            loss(model, tokenizer, prompt, ids)
            for prompt, (_, ids) in zip(prompts, texts, strict=True)
        ]
        return sum(losses) / len(losses)

    print(f"{'whole prompt':24}{mean([prompt for prompt, _ in texts]):8.3f}", flush=True)
    print(f"{'no prompt':24}{mean([''] * len(texts)):8.3f}", flush=True)
    for name in ["random", *arguments.scorers]:
        started = time.perf_counter()
        scored = []
        for prompt, _ in texts:
            spans = words(prompt)
            scores = torch.zeros(len(spans))
            if name != "random":
                scores = word_scores(attribution[name](), model, tokenizer, prompt, spans)
            scored.append((prompt, spans, scores))
        seconds = (time.perf_counter() - started) / len(texts)
        generator = torch.Generator().manual_seed(0)
        mode = "random" if name == "random" else "top"
        for percent in arguments.percents:
            shorter = []
            for prompt, spans, scores in scored:
                kept = keep_top_percent(spans, scores, percent, mode, generator=generator)
                shorter.append(join(prompt, spans, kept))
            label = f"{name}, {percent:g} %"
            print(f"{label:24}{mean(shorter):8.3f}{seconds:10.1f} s", flush=True)


if __name__ == "__main__":
    main()
