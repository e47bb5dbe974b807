"""FrugalPrompt at laptop scale: what shortened texts still say to a reader that never saw any.

Two kinds of text in words. Reviews of three clauses, each with one word of praise or blame among
others that say nothing; the answer is what the majority says. Sums, "two plus one minus one",
modulo 3, where every word counts. A small encoder that knows the task scores the words, another one
of another seed answers from what is kept: the best, random, or the worst of them. Beside it,
SmolLM2 reads some of the reviews, shortened by its own scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from tokenry.learn.fit import fit
from tokenry.model.attribution.decompx import DecompX
from tokenry.model.attribution.frugalprompt import word_scores
from tokenry.model.attribution.globenc import GlobEnc
from tokenry.model.decoding import DecodingState
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error
from tokenry.text.compression import Mode, join, keep_top_percent
from tokenry.text.compression import words as spans_of

PRAISE = ("wonderful", "great", "superb", "charming", "excellent", "brilliant", "touching")
BLAME = ("terrible", "awful", "dull", "clumsy", "weak", "dreadful", "tedious")
OPENINGS = ("overall", "in my view", "to be honest", "last night", "for me")
NOUNS = ("plot", "acting", "music", "ending", "script", "dialogue")
VERBS = ("was", "seemed", "felt", "looked")
DEGREES = ("really", "quite", "rather", "simply")
NUMBERS = ("zero", "one", "two")
TERMS = 3
MARKS = ["[PAD]", "[CLS]"]
VOCABULARY = sorted(
    {*PRAISE, *BLAME, *NOUNS, *VERBS, *DEGREES, *NUMBERS, "plus", "minus", "the", "and", "while"}
    | {word for opening in OPENINGS for word in opening.split()}
)
ID_OF = {word: number for number, word in enumerate([*MARKS, *VOCABULARY])}
PERCENTS = (80, 60, 50)
TEXTS, REAL_TEXTS = 300, 16
STEPS = {"sentiment": 300, "arithmetic": 300}
BATCH = 64
Text = tuple[list[str], int]
"""The words and the answer."""
Right = dict[tuple[str, str, int], Tensor]
"""(task, how words are kept, percent) -> whether each text was answered rightly [N], float."""


def reproduce(seed: int) -> Outcome:
    """Held if reviews cut to 80 % by GlobEnc lose less than 3 points, at 50 % the best words beat
    random ones and those the worst by two standard errors, and sums lose more than 20 points."""
    right = measure(seed)
    share = {key: float(values.mean()) for key, values in right.items()}
    tasks = ("sentiment", "arithmetic")
    lost = {task: share[task, "all", 100] - share[task, "globenc", 80] for task in tasks}

    def beats(better: str, worse: str) -> bool:
        gap = right["sentiment", better, 50] - right["sentiment", worse, 50]
        mean, error = mean_and_error(gap)
        return mean > 2 * error

    conditions = {
        "reviews lose 3 points or more at 80 %": lost["sentiment"] < 0.03,
        "at 50 % the best words do not beat random ones": beats("globenc", "random"),
        "at 50 % random words do not beat the worst": beats("random", "bottom"),
        "sums lose 20 points or less at 80 %": lost["arithmetic"] > 0.2,
    }
    failed = [failure for failure, ok in conditions.items() if not ok]
    real = smollm2_answers(seed)
    return Outcome(
        held=not failed,
        needs="sentiment: accuracy falls by less than 3 points at 80 %, and at 50 % best > random "
        "> worst by two standard errors; arithmetic: it falls by more than 20 points at 80 %",
        measurements=[
            *[
                Measurement(f"{task}, {how}, {percent} % of the words", value, "accuracy", seed)
                for (task, how, percent), value in share.items()
            ],
            *[
                Measurement(f"SmolLM2, {how}, {percent} % of the words", value, "accuracy", seed)
                for (how, percent), value in real.items()
            ],
        ],
        reason="; ".join(failed)
        or "encoders that were trained on the task both score and read; SmolLM2's accuracy on "
        f"{REAL_TEXTS} reviews is an observation, not part of the claim",
        figure=lambda figure: draw(figure, share),
    )


def measure(seed: int) -> Right:
    right: Right = {}
    for task, make in (("sentiment", review), ("arithmetic", sum_of_words)):
        scorer, reader = (trained(task, make, seed * 2 + own) for own in (0, 1))
        generator = torch.Generator().manual_seed(seed + 5000)
        texts = [make(generator) for _ in range(TEXTS)]
        answers = torch.tensor([answer for _, answer in texts])

        right[task, "all", 100] = answered(reader, [words for words, _ in texts], answers)
        scores = {
            name: [of(scorer, encoded([words])[0], 0)[1:] for words, _ in texts]
            for name, of in (("globenc", GlobEnc()), ("decompx", DecompX()))
        }
        kinds: list[tuple[str, str, Mode]] = [
            ("globenc", "globenc", "top"),
            ("decompx", "decompx", "top"),
            ("random", "globenc", "random"),
            ("bottom", "globenc", "bottom"),
        ]
        for percent in PERCENTS:
            for how, name, mode in kinds:
                rows = [
                    [words[i] for i in keep_top_percent(words, own, percent, mode, None, generator)]
                    for (words, _), own in zip(texts, scores[name], strict=True)
                ]
                right[task, how, percent] = answered(reader, rows, answers)
    return right


def review(generator: torch.Generator) -> Text:
    """Three clauses; 1 if the majority of them praises."""

    def one_of(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    words = one_of(OPENINGS).split()
    signs = [int(torch.randint(2, (), generator=generator)) for _ in range(3)]
    for place, sign in enumerate(signs):
        words += [["", "and", "while"][place]] if place else []
        words += ["the", one_of(NOUNS), one_of(VERBS), one_of(DEGREES)]
        words.append(one_of(PRAISE if sign else BLAME))
    return words, int(sum(signs) > 1)


def sum_of_words(generator: torch.Generator) -> Text:
    """A chain of additions and subtractions modulo 3."""
    terms = torch.randint(3, (TERMS,), generator=generator).tolist()
    signs = [1, *(2 * torch.randint(2, (TERMS - 1,), generator=generator) - 1).tolist()]
    words = [NUMBERS[terms[0]]]
    for sign, term in zip(signs[1:], terms[1:], strict=True):
        words += ["plus" if sign > 0 else "minus", NUMBERS[term]]
    return words, sum(sign * term for sign, term in zip(signs, terms, strict=True)) % 3


def encoded(rows: list[list[str]]) -> Tensor:
    """[CLS] and the words, padded on the right, [B, T]."""
    width = max(len(words) for words in rows)
    pad = [ID_OF["[PAD]"]]
    ids = [
        [ID_OF["[CLS]"], *(ID_OF[word] for word in words), *pad * (width - len(words))]
        for words in rows
    ]
    return torch.tensor(ids)


@torch.no_grad()
def answered(model: Any, rows: list[list[str]], answers: Tensor) -> Tensor:
    """Whether the model answers each text rightly, float [N]."""
    ids = encoded(rows)
    logits = model(input_ids=ids, attention_mask=(ids != ID_OF["[PAD]"]).long()).logits
    return (logits.argmax(-1) == answers).float()


def trained(task: str, make: Callable[[torch.Generator], Text], seed: int) -> Any:
    """A two-layer encoder that answers the task from whole texts."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(ID_OF),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        pad_token_id=ID_OF["[PAD]"],
    )
    config.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = BertForSequenceClassification(config)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        texts = [make(generator) for _ in range(BATCH)]
        ids = encoded([words for words, _ in texts])
        answers = torch.tensor([answer for _, answer in texts])
        mask = (ids != ID_OF["[PAD]"]).long()
        return cross_entropy(model(input_ids=ids, attention_mask=mask).logits, answers)

    fit(
        loss,
        model,
        steps=STEPS[task],
        learning_rate=1e-3,
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1),
        weight_decay=0.01,
        clip=None,
        seed=seed,
    )
    return model.eval()


def smollm2_answers(seed: int) -> dict[tuple[str, int], float]:
    """SmolLM2's accuracy on reviews that it shortened itself, after four examples."""
    import tokenry

    model, tokenizer = tokenry.load("smollm2")
    generator = torch.Generator().manual_seed(seed + 9000)
    shown, labels = [], {0: " negative", 1: " positive"}
    while len(shown) < 4:  # two of each kind, in turn
        words, answer = review(generator)
        if answer == len(shown) % 2:
            shown.append(f"Review: {' '.join(words)}\nSentiment:{labels[answer]}\n\n")
    start = tokenizer("".join(shown), return_tensors="pt")["input_ids"]
    state = DecodingState.start(model, start)
    ids = [tokenizer(label)["input_ids"][0] for label in labels.values()]
    texts = [review(generator) for _ in range(REAL_TEXTS)]
    settings: list[tuple[Mode, str, int]] = [
        ("top", "all", 100),
        ("top", "globenc", 80),
        ("top", "globenc", 50),
        ("random", "random", 80),
        ("random", "random", 50),
    ]
    right = {(how, percent): 0 for _, how, percent in settings}
    for words, answer in texts:
        text = " ".join(words)
        spans = spans_of(text)
        scores = word_scores(GlobEnc(), model, tokenizer, text, spans)
        for mode, how, percent in settings:
            kept = keep_top_percent(spans, scores, percent, mode, None, generator)
            shorter = join(text, spans, kept)
            asked = tokenizer(f"Review: {shorter}\nSentiment:", return_tensors="pt")["input_ids"]
            logits = state.copy().append(asked)[0, -1, ids]
            right[how, percent] += int(logits.argmax()) == answer
    return {setting: count / REAL_TEXTS for setting, count in right.items()}


def draw(figure: Any, share: dict[tuple[str, str, int], float]) -> None:
    for axes, task in zip(figure.subplots(1, 2), ("sentiment", "arithmetic"), strict=True):
        for how in ("globenc", "decompx", "random", "bottom"):
            values = [share[task, "all", 100], *(share[task, how, k] for k in PERCENTS)]
            axes.plot([100, *PERCENTS], values, "o-", label=how)
        axes.set(xlabel="percent of the words", ylabel="accuracy", title=task, ylim=(0, 1.02))
        axes.invert_xaxis()
    axes.legend()


PAPER = Paper(
    number=27,
    key="frugalprompt",
    title="FrugalPrompt: Reducing Contextual Overhead in LLMs via Token Attribution",
    arxiv="2510.16439",
    role="token attribution",
    family="efficiency",
    claim="Four fifths of a prompt's words, chosen by attribution, keep what classification needs; "
    "arithmetic loses sharply.",
    reproduce=reproduce,
    threads=1,
)
