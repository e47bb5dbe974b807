"""Known answers: the data's completions beside completions that have not seen them."""

import copy
import math

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError
from tokenry.learn.policy.intro import InTRO
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.known_answers import KnownAnswers
from tokenry.learn.policy.sources.plain import PlainSampling
from tokenry.learn.policy.sources.tree import Tree
from tokenry.learn.run import train

ROWS = [([5], [6, 7, 1]), ([8, 9], [10, 1]), ([4, 4], [1])]


def prompts(answers=True):
    asked = TokenBatch.from_ids([p for p, _ in ROWS], padding_side="left")
    given = TokenBatch.from_ids(
        [p + c for p, c in ROWS], [[False] * len(p) + [True] * len(c) for p, c in ROWS]
    )
    return Prompts(asked.ids, asked.attention, (1,), 0, given if answers else None)


@pytest.mark.parametrize("source", [PlainSampling(), Tree(segment=2)])
def test_every_row_has_the_answer_to_its_prompt_without_the_end(tiny_llama, source):
    drawn = []
    for one in (KnownAnswers(source), source):
        torch.manual_seed(0)
        drawn.append(one(tiny_llama, prompts(), RolloutSettings(4, 5)))
    assert torch.equal(drawn[0].ids, drawn[1].ids)  # the completions do not know of it
    hints = torch.tensor([[6, 7], [10, -1], [-1, -1]])
    assert torch.equal(drawn[0].column("hint"), hints[drawn[0].group])
    with pytest.raises(InputError, match="answers"):
        KnownAnswers(source)(tiny_llama, prompts(False), RolloutSettings(4, 5))


def odd_length(prompt, completion):
    return float(len(completion) % 2)


def test_it_trains_in_the_real_trainer(tiny_llama_text, tiny_tokenizer, tmp_path):
    data = [{"prompt": f"the {noun}", "completion": " sat"} for noun in ("cat", "dog", "mat")]
    goals = {"plain": InTRO(candidates=2), "exact": InTRO(full_vocab=True)}
    for name, goal in goals.items():
        model = copy.deepcopy(tiny_llama_text)
        run = train(
            goal,
            data,
            (model, tiny_tokenizer),
            tmp_path / name,
            rewards=[odd_length],
            source="known-answers",
            samples=4,
            max_new_tokens=4,
            max_steps=3,
            disable_tqdm=True,
            use_cpu=True,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_strategy="no",
        )
        losses = [entry["loss"] for entry in run.record["history"] if "loss" in entry]
        assert len(losses) == 3
        assert all(map(math.isfinite, losses))
        moved = zip(model.parameters(), tiny_llama_text.parameters(), strict=True)
        assert any(not own.equal(old) for own, old in moved)
