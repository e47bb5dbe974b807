"""Reproduction of word filters: perplexity on e-free sentences, and letters that slip through.

Measured on SmolLM2-135M-Instruct:
- perplexity of twenty sentences without the letter e, plain and filtered (first token not scored);
- ten continuations of thirty sampled tokens, plain and filtered: how many contain an e;
- the same under "words of three to five letters", once with the paper's mask on token strings and
  once with the mask on words: the share of words that break the rule.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import TopKLogitsWarper

from tokenry.core.batch import TokenBatch
from tokenry.decode.constraints.words import WordConstraint
from tokenry.decode.generate import ends
from tokenry.decode.sample import sample
from tokenry.decode.steering.ctgs import VocabFilterProcessor, filtered_logprob, token_mask
from tokenry.decode.steering.word_filters import Length, WithoutLetters
from tokenry.papers.base import Measurement, Outcome, Paper

SENTENCES = [
    "A small brown dog ran across our lawn and sat down by a wall.",
    "It was a cold night, and rain was falling on my roof.",
    "His mission was to find out who had built that old clock.",
    "You can always count on a good book to pass an hour or two.",
    "Our train will stop in London for about half an hour.",
    "Birds in this part of India sing all day long.",
    "Nobody in town had any doubt about what to do.",
    "A doctor told him to drink milk and go for long walks.",
    "In autumn, crops grow tall and farmhands work from dawn to dusk.",
    "This city has many parks, a broad canal and two big banks.",
    "My aunt put salt in my soup, and I did not mind at all.",
    "Without food or warm clothing, no man can stay long on that hill.",
    "Both girls want to play piano in a band.",
    "If you do not pay your bill soon, you will lack light and gas.",
    "Music that I know by word and by rhythm can bring back a lost day.",
    "A king had four sons, but not a son would fight for him.",
    "Biology is also a study of how plants turn air and sunlight into sugar.",
    "What is important to a company is trust, and trust is hard to win.",
    "Old ships lay in a harbor, with tall masts swaying in fog.",
    "Tomorrow I will fly south to visit a bright and calm island.",
]
PROMPTS = [
    "Our trip to that island was",
    "A man ran into my shop and",
    "In this book you will find",
    "My old aunt always told us that",
    "What I want most is",
    "Long ago, in a small town,",
    "If it rains tomorrow,",
    "This morning a big dog",
    "A good way to start a day is",
    "Nobody thought that such a thing",
]


def reproduce(seed: int) -> Outcome:
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    no_e = WordConstraint(WithoutLetters("e"), tokenizer, wordless=True)
    plain, filtered = perplexities(model, tokenizer, no_e)
    lower = sum(f < p for p, f in zip(plain, filtered, strict=True))

    free = continuations(model, tokenizer, None, seed)
    without = continuations(model, tokenizer, VocabFilterProcessor(no_e), seed)
    plain_rate = sum("e" in text.lower() for text in free) / len(free)
    filtered_rate = sum("e" in text.lower() for text in without) / len(without)

    sized = WordConstraint(Length(3, 5), tokenizer, wordless=True)
    by_token = token_mask(
        tokenizer, lambda string: not letters(string) or 3 <= letters(string) <= 5
    )
    token_texts = continuations(model, tokenizer, TokenMask(by_token), seed)
    word_texts = continuations(model, tokenizer, VocabFilterProcessor(sized), seed)
    token_breaks, word_breaks = (breaks(sized, texts) for texts in (token_texts, word_texts))

    held = lower == len(SENTENCES) and filtered_rate == 0 and plain_rate > 0.9 and word_breaks == 0
    means = {"plain": geometric_mean(plain), "filtered": geometric_mean(filtered)}

    def figure(canvas: Any) -> None:
        left, right = canvas.subplots(1, 2)
        left.scatter(plain, filtered, s=14)
        limit = max(plain)
        left.plot([0, limit], [0, limit], color="grey", linewidth=0.8)
        left.set(
            xlabel="perplexity, plain", ylabel="perplexity, filtered", title="e-free sentences"
        )
        bars = {"plain": plain_rate, "no e": filtered_rate}
        bars |= {"3-5 by token": token_breaks, "3-5 by word": word_breaks}
        right.bar(list(bars), list(bars.values()))
        right.set(ylabel="share that breaks the rule", ylim=(0, 1))

    return Outcome(
        held=held,
        needs="filtered perplexity < plain on every sentence; an e in no filtered text and in more "
        "than 9 of 10 plain ones; no word outside the length limits under the word mask",
        measurements=[
            Measurement("perplexity, plain", means["plain"]),
            Measurement("perplexity, filtered", means["filtered"]),
            Measurement("sentences with lower perplexity", lower / len(SENTENCES), "share"),
            Measurement("texts with an e, plain", plain_rate, "share", seed),
            Measurement("texts with an e, filtered", filtered_rate, "share", seed),
            Measurement("words not of 3-5 letters, token mask", token_breaks, "share", seed),
            Measurement("words not of 3-5 letters, word mask", word_breaks, "share", seed),
        ],
        reason="The comparison with models fine-tuned on e-free books is not run.",
        figure=figure,
    )


@torch.no_grad()
def perplexities(
    model: Any, tokenizer: Any, constraint: WordConstraint
) -> tuple[list[float], list[float]]:
    """Of every sentence, the perplexity of the model and that of the filtered model."""
    plain, filtered = [], []
    for sentence in SENTENCES:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        logits = model(ids).logits[0, :-1].float()  # [T-1, V]
        state, masks = constraint.initial(), []
        for token in ids[0].tolist():
            state = state.advance(token)
            masks.append(state.mask())
        allowed = torch.stack(masks[:-1])
        everything = torch.ones_like(allowed)
        for result, mask in ((plain, everything), (filtered, allowed)):
            result.append(float(filtered_logprob(logits, mask, ids[0, 1:]).mean().neg().exp()))
    return plain, filtered


class TokenMask:
    """The paper's controller: one fixed mask."""

    def __init__(self, allowed: Tensor):
        self.allowed = allowed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(~self.allowed, float("-inf"))


def continuations(model: Any, tokenizer: Any, processor: Any, seed: int) -> list[str]:
    """Thirty tokens sampled after every prompt, at temperature 0.8."""
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    batch = TokenBatch.from_ids(prompts, pad_id=tokenizer.pad_token_id, padding_side="left")
    cut: Any = TopKLogitsWarper(50)
    drawn = sample(
        model,
        batch.ids,
        batch.attention,
        max_new_tokens=30,
        ends=ends(model, tokenizer),
        temperature=0.8,
        processors=[*([] if processor is None else [processor]), cut],
        leave=False,
        generator=torch.Generator().manual_seed(seed),
    )
    return tokenizer.batch_decode(drawn, skip_special_tokens=True)


def breaks(constraint: WordConstraint, texts: list[str]) -> float:
    """The share of words that the filter rejects; the last word of a text may be cut, so not it."""
    words = [word for text in texts for word in constraint.spelling.words(text)[:-1]]
    return sum(not constraint.filter(word) for word in words) / max(1, len(words))


def letters(string: str) -> int:
    return sum(character.isalpha() for character in string)


def geometric_mean(values: list[float]) -> float:
    return float(torch.tensor(values).log().mean().exp())


PAPER = Paper(
    number=62,
    key="ctgs",
    title="Most Language Models can be Poets too: An AI Writing Assistant and Constrained Text "
    "Generation Studio",
    arxiv="2306.15926",
    role="logits controller",
    family="control",
    claim="A word filter never raises perplexity on conforming text, and no violation remains",
    reproduce=reproduce,
)
