"""Search against enumeration, plain sampling, and forward passes over whole sequences."""

import itertools

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.decode.rollouts import rollouts
from tokenry.decode.search import (
    Beam,
    beam_search_policy,
    best_of_n,
    sample_steps,
    step_delimiter,
    stepwise_beam_search,
)
from tokenry.model.decoding import DecodingState

PROMPT = [5, 9, 3]
EVERY_THIRD = range(0, 64, 3)


def ends_step(ids):
    return ids[-1] in EVERY_THIRD


def length(prompt, completions):
    return [len(ids) for ids in completions]


def logprob(model, prompt, completion):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())


@pytest.fixture(scope="module")
def four_tokens():
    """A model of four tokens, none of which ends a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def test_best_of_n_returns_the_samples_by_score(tiny_llama):
    [drawn] = rollouts(tiny_llama, [PROMPT], 12, max_new_tokens=9, ends=[1], seed=4)
    found = best_of_n(tiny_llama, PROMPT, length, 12, max_new_tokens=9, ends=[1], seed=4)
    assert sorted(found.ids) == sorted(drawn)
    assert found.scores == sorted((len(ids) for ids in drawn), reverse=True)
    assert len(found.best) == max(map(len, drawn))


def test_best_of_n_frequencies_are_the_exact_ones(four_tokens):
    """Two tokens, reward = the first token's number; the law of the best of 3 is known."""
    from tokenry.core.tilting import best_of_n_distribution

    texts = list(itertools.product(range(4), repeat=2))
    exact = best_of_n_distribution(
        torch.tensor([logprob(four_tokens, [2], list(text)) for text in texts]),
        torch.tensor([float(text[0]) for text in texts]),
        3,
    ).exp()
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(texts, 0)
    runs = 120
    for _ in range(runs):
        found = best_of_n(
            four_tokens,
            [2],
            lambda _, completions: [ids[0] for ids in completions],
            3,
            max_new_tokens=2,
            seed=generator,
        )
        counts[tuple(found.best)] += 1
    share = torch.tensor([counts[text] / runs for text in texts])
    assert (share - exact).abs().max() < 5 * 0.5 / runs**0.5


def test_one_candidate_and_one_beam_is_plain_sampling(tiny_model):
    for seed in range(2):
        found = stepwise_beam_search(
            tiny_model,
            PROMPT,
            length,
            step_end=ends_step,
            max_steps=6,
            max_step_tokens=4,
            candidates=1,
            ends=[1],
            seed=seed,
        ).best
        generator = torch.Generator().manual_seed(seed)
        state = DecodingState.start(tiny_model, torch.tensor([PROMPT]))
        plain: list[int] = []
        while len(plain) < len(found):
            token = torch.multinomial(state.logits.softmax(-1), 1, generator=generator)
            plain.append(int(token))
            state.append(token[0])
        assert found == plain


def test_a_candidates_kept_cache_is_that_of_its_own_tokens(tiny_model):
    """Steps of different lengths from one batch, twice in a row, against re-encoding the ids."""
    generator = torch.Generator().manual_seed(2)
    beam = Beam(DecodingState.start(tiny_model, torch.tensor([PROMPT])), [], 0.0, False)
    excess = set()
    for _ in range(3):
        drawn = sample_steps(beam, 5, ends_step, 8, set(), 1.0, generator)
        excess |= {candidate.excess for candidate in drawn}
        for candidate in drawn:
            kept = candidate.beam(0.0).state
            whole = DecodingState.start(tiny_model, torch.tensor([PROMPT + candidate.ids]))
            torch.testing.assert_close(kept.logits, whole.logits, rtol=1e-4, atol=1e-4)
            assert kept.length == len(PROMPT) + len(candidate.ids)
            for state in (kept, whole):
                state.append(torch.tensor([7]))
            torch.testing.assert_close(kept.logits, whole.logits, rtol=1e-4, atol=1e-4)
        beam = drawn[1].beam(0.0)
    assert len(excess) > 1


@pytest.mark.parametrize("width", [1, 3])
def test_an_oracle_finds_the_right_path_wherever_a_candidate_takes_it(four_tokens, width):
    goal = [2, 0, 3, 1, 1]

    def oracle(prompt, completions):
        return [float(ids == goal[: len(ids)]) for ids in completions]

    found = stepwise_beam_search(
        four_tokens,
        [1],
        oracle,
        step_end=lambda ids: True,
        max_steps=5,
        width=width,
        candidates=60,
        temperature=3.0,
    )
    assert found.best == goal
    assert found.scores[0] == 1.0


def test_with_every_continuation_at_hand_it_is_exact_beam_search(four_tokens):
    """Scores are log-probabilities; 400 candidates of 4 tokens contain each of them."""

    def scorer(prompt, completions):
        assert len({tuple(ids) for ids in completions}) == len(completions)
        return [logprob(four_tokens, prompt, ids) for ids in completions]

    found = stepwise_beam_search(
        four_tokens,
        [1],
        scorer,
        step_end=lambda ids: True,
        max_steps=3,
        width=16,
        candidates=400,
        temperature=5.0,
    )
    best = max(itertools.product(range(4), repeat=3), key=lambda y: logprob(four_tokens, [1], y))
    assert found.best == list(best)


def test_an_ended_beam_keeps_its_place_until_it_is_beaten(four_tokens):
    """Ending at once scores 5; going on scores 1, 2, ... 8: at width 2 both live, 8 wins."""

    def scorer(prompt, completions):
        return [5.0 if ids == [0] else -1.0 if ids[-1] == 0 else len(ids) for ids in completions]

    arguments = {
        "step_end": lambda ids: True,
        "width": 2,
        "candidates": 40,
        "ends": [0],
        "temperature": 3.0,
    }
    for steps, best in ((3, 5.0), (8, 8.0)):
        found = stepwise_beam_search(four_tokens, [1], scorer, max_steps=steps, **arguments)
        assert found.scores[0] == best
        assert (found.best == [0]) == (best == 5.0)


def test_beam_search_of_width_one_is_greedy(tiny_llama):
    [found] = beam_search_policy(tiny_llama, [PROMPT], 1, max_new_tokens=8)
    state = DecodingState.start(tiny_llama, torch.tensor([PROMPT]))
    for token in found:
        assert token == int(state.logits.argmax())
        state.append(torch.tensor([token]))


def test_a_beam_as_wide_as_the_tree_finds_the_likeliest_text(four_tokens):
    prompts = [[1], [3, 0, 2]]
    found = beam_search_policy(four_tokens, prompts, 64, max_new_tokens=3)
    for prompt, completion in zip(prompts, found, strict=True):
        texts = [list(text) for text in itertools.product(range(4), repeat=3)]
        assert completion == max(texts, key=lambda text: logprob(four_tokens, prompt, text))


def test_without_length_penalty_the_sum_of_logprobs_counts(four_tokens):
    """Among texts that may end with token 0 after 1 to 3 tokens, by sum and by mean."""
    ending = [[*body, 0] for n in range(3) for body in itertools.product((1, 2, 3), repeat=n)] + [
        list(body) for body in itertools.product((1, 2, 3), repeat=3)
    ]
    for penalty in (0.0, 1.0):
        [found] = beam_search_policy(
            four_tokens, [[2]], 40, max_new_tokens=3, length_penalty=penalty, ends=[0]
        )
        best = max(ending, key=lambda y: logprob(four_tokens, [2], y) / len(y) ** penalty)
        assert found == best


def test_steps_end_at_a_delimiter(tiny_tokenizer):
    ends = step_delimiter(tiny_tokenizer, "\n")
    assert ends(tiny_tokenizer("a = 1\n")["input_ids"])
    assert not ends(tiny_tokenizer("a = 1\n ")["input_ids"])


def test_bad_input_is_named(tiny_llama):
    options = {"step_end": ends_step, "max_steps": 2}
    with pytest.raises(InputError, match="width is 3"):
        stepwise_beam_search(tiny_llama, PROMPT, length, width=3, candidates=2, **options)
    with pytest.raises(ShapeError, match="1 scores for"):
        stepwise_beam_search(tiny_llama, PROMPT, lambda *_: [1.0], **options)
    with pytest.raises(InputError, match="not a number"):
        best_of_n(tiny_llama, PROMPT, lambda *_: [float("nan")], 1, max_new_tokens=2)
    with pytest.raises(InputError, match="n is 0"):
        best_of_n(tiny_llama, PROMPT, length, 0, max_new_tokens=2)
