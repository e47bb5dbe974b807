import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.decode.branches import Branch
from tokenry.decode.routing.entropy import EntropyRouter
from tokenry.decode.routing.two_models import write_routed
from tokenry.decode.sample import sample

PROMPTS = torch.tensor([[5, 9, 12, 3], [7, 7, 30, 2]])
NEW = 9


@pytest.fixture(scope="module")
def models():
    from conftest import build_llama

    return build_llama(), build_llama(num_hidden_layers=2)


def branches(models):
    return (Branch(model, PROMPTS.clone()) for model in models)


class Always:
    def __call__(self, logits):
        return torch.ones(len(logits), dtype=torch.bool)


class EveryThird:
    """By the call, whatever the logits."""

    calls = 0

    def __call__(self, logits):
        self.calls += 1
        return torch.full((len(logits),), self.calls % 3 == 0)


def test_asking_never_or_always_is_one_model_alone(models):
    small, large = models
    never = write_routed(*branches(models), EntropyRouter(torch.inf), max_new_tokens=NEW)
    assert never.ids == sample(small, PROMPTS, max_new_tokens=NEW, temperature=0)
    assert never.passes == (NEW, 0)
    assert not any(map(any, never.asked))
    always = write_routed(*branches(models), Always(), max_new_tokens=NEW)
    assert always.ids == sample(large, PROMPTS, max_new_tokens=NEW, temperature=0)
    assert all(map(all, always.asked))


def test_each_token_is_the_likeliest_of_the_model_that_was_asked(models):
    found = write_routed(*branches(models), EveryThird(), max_new_tokens=NEW)
    assert found.asked == [[False, False, True] * 3] * 2
    assert found.passes == (NEW, 3)  # what was written since is read in one pass
    for prompt, ids, asked in zip(PROMPTS.tolist(), found.ids, found.asked, strict=True):
        for place, (token, own) in enumerate(zip(ids, asked, strict=True)):
            with torch.no_grad():
                text = torch.tensor([prompt + ids[:place]])
                assert int(models[own](text).logits[0, -1].argmax()) == token


def test_a_text_ends_at_its_end_and_is_not_asked_for_any_more(models):
    whole = write_routed(*branches(models), Always(), max_new_tokens=NEW)
    end = whole.ids[0][2]
    found = write_routed(*branches(models), Always(), max_new_tokens=NEW, ends=[end])
    for ids, short, asked in zip(whole.ids, found.ids, found.asked, strict=True):
        stop = ids.index(end) + 1 if end in ids else NEW
        assert short == ids[:stop]
        assert len(asked) == stop


def test_draws_obey_the_generator(models):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return write_routed(
            *branches(models), EntropyRouter(), max_new_tokens=NEW, temperature=1.0,
            generator=generator,
        ).ids  # fmt: skip

    assert drawn(1) == drawn(1) != drawn(2)
    with pytest.raises(InputError, match="max_new_tokens"):
        write_routed(*branches(models), EntropyRouter(), max_new_tokens=0)
