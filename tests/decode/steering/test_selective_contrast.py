"""USCD: worked examples, and a processor whose other prompt is read only when it is needed."""

import math

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.steering.selective_contrast import (
    SelectiveContrastProcessor,
    distribution_spread,
    selective_contrast,
    strip_examples,
)

ALWAYS = math.inf


def logits(*probs):
    return torch.tensor([probs], dtype=torch.float64).log()


def test_spread_of_known_distributions():
    assert distribution_spread(logits(0.7, 0.1, 0.1, 0.1)).item() == pytest.approx(0.3)
    scaled = distribution_spread(logits(0.7, 0.1, 0.1, 0.1), scale_free=True)
    assert scaled.item() == pytest.approx(0.6)
    assert distribution_spread(logits(0.4, 0.3, 0.2, 0.1)).item() == pytest.approx(0.1291, abs=5e-5)
    one_hot = torch.full((1, 1000), -1e9, dtype=torch.float64)
    one_hot[0, 7] = 0.0
    assert distribution_spread(one_hot, scale_free=True).item() == pytest.approx(1.0)


def test_the_contrast_moves_the_best_token():
    scores, active = selective_contrast(
        logits(0.5, 0.3, 0.2), logits(0.6, 0.1, 0.3), -0.7, threshold=ALWAYS, keep_ratio=0.0
    )
    assert active.tolist() == [True]
    assert scores.exp()[0].tolist() == pytest.approx([0.08, 0.23, 0.0])


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_impossible_tokens_stay_so_and_what_only_the_other_prompt_excludes_is_not_contrasted(space):
    own, other = logits(0.5, 0.3, 0.2, 0.0, 0.0), logits(0.5, 0.4, 0.0, 0.1, 0.0)
    scores, active = selective_contrast(
        own, other, -0.7, threshold=ALWAYS, keep_ratio=0.0, space=space
    )
    assert active.all()
    assert scores[0, 2].exp().item() == pytest.approx(0.2)
    assert (scores[0, 3:] == -math.inf).all()
    assert scores[0, :2].isfinite().all()


def test_a_shut_gate_leaves_the_distribution():
    own, other = torch.randn(2, 5, 30).double()
    for threshold in (0.0, 0.01):
        scores, active = selective_contrast(own, other, threshold=threshold)
        assert not active.any()
        torch.testing.assert_close(scores, own.log_softmax(-1))


def test_the_gate_is_each_rows_own():
    own = torch.cat([logits(0.97, 0.01, 0.01, 0.01), logits(0.4, 0.3, 0.2, 0.1)])
    scores, active = selective_contrast(own, own.flip(1), threshold=0.5)
    assert active.tolist() == [False, True]
    torch.testing.assert_close(scores[0], own[0])


def test_equal_prompts_keep_the_ranking():
    own = torch.randn(4, 50).double()
    scores, _ = selective_contrast(own, own, threshold=ALWAYS)
    p = own.softmax(-1)
    kept = p >= (2 / 3) / 50
    torch.testing.assert_close(scores.exp(), torch.where(kept, 0.3 * p, 0.0))
    again = selective_contrast(own, own, threshold=ALWAYS, space="logit")[0]
    torch.testing.assert_close(again.softmax(-1), scores.softmax(-1))


def test_without_a_weight_only_rare_tokens_go():
    own, other = torch.randn(2, 6, 40).double()
    scores, _ = selective_contrast(own, other, weight=0.0, threshold=ALWAYS)
    p = own.softmax(-1)
    assert torch.equal(scores.isneginf(), p < (2 / 3) / 40)
    assert torch.equal(scores.argmax(-1), own.argmax(-1))


def test_where_nothing_is_left_the_model_decides():
    own, other = logits(0.34, 0.33, 0.33), logits(0.34, 0.33, 0.33)
    scores, _ = selective_contrast(own, other, weight=-1.5, threshold=ALWAYS)
    torch.testing.assert_close(scores, own)


def run(model, inputs, threshold, **options):
    process = SelectiveContrastProcessor(
        model, lambda prompt: [5, *[t for t in prompt if t][-3:]], threshold=threshold, **options
    )
    seen = []

    def watch(ids, scores):
        seen.append((ids, scores, process(ids, scores)))
        return seen[-1][2]

    out = model.generate(**inputs, logits_processor=[watch], max_new_tokens=8, pad_token_id=0)
    return process, seen, out


@torch.no_grad()
def whole(model, row):
    return model(input_ids=torch.tensor([row])).logits[0, -1]


@pytest.mark.parametrize("sample", [False, True])
def test_lazy_branches_give_the_scores_of_whole_passes(tiny_llama, sample):
    ids = torch.tensor([[0, 0, 9, 8, 7, 6], [11, 12, 13, 14, 15, 16]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "do_sample": sample}
    torch.manual_seed(0)
    process, seen, _ = run(tiny_llama, inputs, threshold=0.35)
    opened = 0
    for so_far, scores, steered in seen:
        spread = distribution_spread(scores, scale_free=True)
        for row in range(2):
            if spread[row] > 0.35:
                assert torch.equal(steered[row], scores[row])
                continue
            opened += 1
            start = [5, *[t for t in ids[row].tolist() if t][-3:]]
            other = whole(tiny_llama, start + so_far[row, 6:].tolist())
            expected, _ = selective_contrast(scores[row][None], other[None], threshold=ALWAYS)
            torch.testing.assert_close(steered[row], expected[0], rtol=1e-3, atol=1e-3)
    assert 0 < opened < 16
    assert process.branch.passes < len(seen) or sample


def test_a_gate_that_never_opens_costs_nothing(tiny_llama):
    inputs = {"input_ids": torch.tensor([[9, 8, 7]]), "do_sample": False}
    process, _, out = run(tiny_llama, inputs, threshold=1e-6)
    assert process.branch.passes == 0
    assert torch.equal(out, tiny_llama.generate(**inputs, max_new_tokens=8, pad_token_id=0))


def test_beams_are_followed(tiny_llama):
    inputs = {"input_ids": torch.tensor([[9, 8, 7, 6]]), "num_beams": 3, "do_sample": False}
    process, seen, _ = run(tiny_llama, inputs, threshold=ALWAYS)
    so_far, scores, steered = seen[-1]
    for row in range(3):
        other = whole(tiny_llama, [5, 8, 7, 6, *so_far[row, 4:].tolist()])
        # generate gives log-probabilities here
        expected, _ = selective_contrast(scores[row][None], other[None], threshold=ALWAYS)
        torch.testing.assert_close(steered[row], expected[0], rtol=1e-3, atol=1e-3)
    assert process.branch.passes == len(seen)


def test_examples_are_stripped():
    prompt = (
        'def double(x):\n    """Twice the number.\n\n    Example:\n    >>> double(2)\n    4\n\n'
        "    >>> double(3)\n    6\n\n    Positive numbers only.\n"
        '    """\nassert double(1) == 2\n    return'
    )
    assert strip_examples(prompt) == (
        'def double(x):\n    """Twice the number.\n\n\n\n    Positive numbers only.\n'
        '    """\n    return'
    )
    assert strip_examples("Say what examples are: none.\n") == "Say what examples are: none.\n"


def test_bad_settings_are_named(tiny_llama):
    with pytest.raises(InputError, match=r"weight is 0\.7"):
        SelectiveContrastProcessor(tiny_llama, [1], weight=0.7)
    with pytest.raises(InputError, match="space is 'log'"):
        SelectiveContrastProcessor(tiny_llama, [1], space="log")
    process = SelectiveContrastProcessor(tiny_llama, [1], prompt_length=9)
    with pytest.raises(InputError, match="new processor"):
        process(torch.tensor([[1, 2]]), torch.zeros(1, 64))
