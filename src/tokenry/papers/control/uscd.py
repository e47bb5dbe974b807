"""USCD in a world where examples say what a description leaves open, read by an exact reader.

A text is a description R, some noisy examples x y, and a question x. The answer is x + s mod 11,
and R leaves two shifts open, R and R + 4, of which the first is the usual one, nine of ten. The
reader's distribution is the Bayesian one with that habit, with noise on its logits, as a model has;
without the examples it is the habit alone. On the questions that count, both shifts are as
frequent, so that the habit misleads. Compared are the reader's own answer, the contrast at every
step, and the contrast where the reader is uncertain.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tokenry.decode.steering.selective_contrast import distribution_spread, selective_contrast
from tokenry.papers.base import Measurement, Outcome, Paper, mean_and_error

NUMBERS, OFFSET = 11, 4
USUAL, NOISE, MOST_EXAMPLES = 0.9, 0.6, 6
FLOOR, LOGIT_NOISE = 0.002, 0.3  # of each wrong answer; standard deviation
QUESTIONS = 20_000
THRESHOLD = 0.9
THRESHOLDS = (0.0, 0.3, 0.5, 0.63, 0.75, 0.9, 1.0, math.inf)


def reproduce(seed: int) -> Outcome:
    """Held if the gated contrast gains where the gate is open and is no worse than
    the contrast at every step, two standard errors allowed."""
    found = answers(seed)
    plain, gated, always = (found[key].double() for key in (0.0, THRESHOLD, math.inf))
    open_gate = found["open"]
    gain = (gated - plain)[open_gate]
    margin = gated - always
    (gained, gain_error), (kept, margin_error) = mean_and_error(gain), mean_and_error(margin)
    clear = gained > 2 * gain_error
    no_worse = kept >= -2 * margin_error
    reasons = [
        *([] if clear else ["no clear gain where the gate is open"]),
        *([] if no_worse else ["the contrast at every step is better than the gated one"]),
    ]
    curve = [(threshold, mean(found[threshold].double())) for threshold in THRESHOLDS]
    return Outcome(
        held=clear and no_worse,
        needs="where the gate is open, the contrast's accuracy is above the model's own by more "
        "than two standard errors; over all questions it is not below that of the contrast at "
        "every step by more than two standard errors",
        measurements=[
            Measurement("accuracy, gate open, reader alone", mean(plain[open_gate]), "share", seed),
            Measurement("accuracy, gate open, contrast", mean(gated[open_gate]), "share", seed),
            Measurement("accuracy, reader alone", mean(plain), "share", seed),
            Measurement("accuracy, contrast where uncertain", mean(gated), "share", seed),
            Measurement("accuracy, contrast at every step", mean(always), "share", seed),
            Measurement("questions with an open gate", mean(open_gate.double()), "share", seed),
        ],
        reason="; ".join(reasons)
        or "an exact reader in place of a language model, whose habit the questions do not share: "
        "a world built for the contrast. An earlier version with a small trained transformer, "
        "which had hardly learned to use the examples, did not show the gain. Where the habit is "
        "right, subtracting it loses; the gate saves passes here, not accuracy",
        figure=lambda figure: draw(figure, curve),
    )


def mean(values: Tensor) -> float:
    return float(values.mean())


def answers(seed: int) -> dict[Any, Tensor]:
    """For each threshold, which questions are answered rightly [N]; and "open", whether the gate of
    `THRESHOLD` is."""
    generator = torch.Generator().manual_seed(seed)

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    examples = torch.randint(1, MOST_EXAMPLES + 1, (QUESTIONS,), generator=generator)
    unusual = chance(QUESTIONS) < 0.5
    shown = torch.arange(MOST_EXAMPLES) < examples[:, None]
    noisy = chance(QUESTIONS, MOST_EXAMPLES) < NOISE
    accident = torch.randint(NUMBERS, noisy.shape, generator=generator)
    # what each example shows, as a difference to the usual shift
    shift = torch.where(noisy, accident, OFFSET * unusual[:, None])
    right, wrong = 1 - NOISE + NOISE / NUMBERS, NOISE / NUMBERS
    evidence = [
        torch.where(shift == candidate, math.log(right), math.log(wrong)) * shown
        for candidate in (0, OFFSET)
    ]
    odds = evidence[1].sum(1) - evidence[0].sum(1) + math.log(1 / USUAL - 1)
    with_examples, without = (
        distribution(posterior) + LOGIT_NOISE * normal(generator)
        for posterior in (odds.sigmoid(), torch.full_like(odds, 1 - USUAL))
    )
    truth = OFFSET * unusual  # the usual answer is called 0
    found: dict[Any, Tensor] = {}
    for threshold in THRESHOLDS:
        scores, _ = selective_contrast(with_examples, without, threshold=threshold)
        found[threshold] = scores.argmax(-1) == truth
    found["open"] = distribution_spread(with_examples, True) <= THRESHOLD
    return found


def distribution(unusual: Tensor) -> Tensor:
    """Logits [N, 11] of the answers, given the probability [N] of the unusual shift."""
    probs = torch.full((len(unusual), NUMBERS), FLOOR, dtype=torch.float64)
    left = 1 - NUMBERS * FLOOR
    probs[:, 0] += left * (1 - unusual)
    probs[:, OFFSET] += left * unusual
    return probs.log()


def normal(generator: torch.Generator) -> Tensor:
    return torch.randn(QUESTIONS, NUMBERS, generator=generator, dtype=torch.float64)


def draw(figure: Any, curve: list[tuple[float, float]]) -> None:
    axes = figure.subplots()
    places = range(len(curve))
    axes.plot(places, [accuracy for _, accuracy in curve], marker="o")
    labels = ["never" if t == 0 else "always" if math.isinf(t) else f"{t:g}" for t, _ in curve]
    axes.set_xticks(list(places), labels)
    axes.set_xlabel("contrast where spread × √V is at most")
    axes.set_ylabel("accuracy")


PAPER = Paper(
    number=161,
    key="uscd",
    title="Improving Code Generation of LLMs by Uncertainty-Aware Selective Contrastive Decoding",
    arxiv="2409.05923",
    role="logits controller",
    family="control",
    claim="Subtracting the prediction of a prompt without examples, where the model is uncertain, "
    "raises accuracy, at no loss against subtracting it everywhere.",
    reproduce=reproduce,
    threads=1,
)
