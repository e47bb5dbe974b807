"""Several prompts at once: each text is the one it would be alone."""

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.speculation.goose import Goose
from tokenry.decode.speculation.speculate import drafter as drafters
from tokenry.decode.speculation.speculate import generate_with_drafter, speculate

PROMPTS = [
    torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (3, 11, 7)
]


@pytest.mark.parametrize("name", ["goose", "recycling", "context", "lookahead"])
def test_every_row_is_the_text_of_that_prompt_alone(tiny_model, name):
    alone = [
        generate_with_drafter(tiny_model, prompt, drafters[name](), 30, eos_token_id=[])
        for prompt in PROMPTS
    ]
    ends = [alone[1].new_ids[12]]  # rows end at different times
    drafter = drafters[name]()
    for _ in range(2):
        for eos in ([], ends):
            found = speculate(tiny_model, PROMPTS, drafter, 30, eos_token_id=eos)
            for one, text in zip(alone, found, strict=True):
                expected = one.new_ids
                if eos and ends[0] in expected:
                    expected = expected[: expected.index(ends[0]) + 1]
                assert text.new_ids == expected
                assert sum(text.accept_lengths) == len(expected) - 1


def test_rows_accept_different_amounts_in_one_pass(tiny_model):
    warm = Goose()
    prompts = [PROMPTS[0], PROMPTS[1]]
    generate_with_drafter(tiny_model, prompts[0], warm, 40, eos_token_id=[])
    found = speculate(tiny_model, prompts, warm, 40, eos_token_id=[])
    assert found[0].accept_lengths != found[1].accept_lengths
    assert found[0].forward_calls < found[1].forward_calls


def test_sampled_rows_follow_their_own_logits(tiny_model):
    """At a temperature near 0 sampling is greedy, in a batch too."""
    greedy = speculate(tiny_model, PROMPTS, Goose(), 12, eos_token_id=[])
    options = {"temperature": 1e-4, "generator": torch.Generator().manual_seed(0)}
    cold = speculate(tiny_model, PROMPTS, Goose(), 12, eos_token_id=[], **options)
    assert [text.ids for text in cold] == [text.ids for text in greedy]


def test_a_pruned_tree_loses_nodes_and_nothing_else(tiny_model):
    expected = generate_with_drafter(tiny_model, PROMPTS[1], Goose(), 30, eos_token_id=[])
    sizes = []

    def even_only(text, tree):
        assert tree.tokens[0] == text[-1]
        kept = [0]
        for node in range(1, len(tree)):
            if tree.tokens[node] % 2 == 0 and tree.parents[node] in kept:
                kept.append(node)
        sizes.append((len(tree), len(kept)))
        return tree.select(kept)

    found = generate_with_drafter(
        tiny_model, PROMPTS[1], Goose(), 30, eos_token_id=[], prune=even_only
    )
    assert found.ids == expected.ids
    assert found.nodes == [kept for _, kept in sizes]
    assert any(kept < whole for whole, kept in sizes)


def test_what_cannot_be_decoded_is_refused(tiny_llama):
    from tokenry.model.cache.h2o import H2O

    with pytest.raises(InputError, match="no prompt"):
        speculate(tiny_llama, [], Goose())
    window = tiny_llama.config.max_position_embeddings
    with pytest.raises(InputError, match=f"{window} tokens fills the model's window"):
        speculate(tiny_llama, [[1] * window], Goose())
    with pytest.raises(InputError, match="a cache that evicts or has a fixed size"):
        speculate(tiny_llama, [[1, 2]], Goose(), cache=H2O().cache(tiny_llama))
