"""Controls before texts: what stands where, and under which control samples are drawn."""

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.lab.styles import ControlPoint, StyleBench, behind
from tokenry.learn.preference.meet import ControlPrompts


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    return StyleBench(2, pairs=6, length=3, fit_steps=40, batch_size=4, samples=300)


def test_each_class_has_its_text_before_its_rows():
    batch = TokenBatch.from_ids([[9, 1], [9, 2], [9, 3], [9, 4]], group=[0, 1, 0, 1])
    joined = behind(batch, torch.tensor([[5, 6], [7, 8]]))
    assert joined.ids.tolist() == [[5, 6, 9, 1], [5, 6, 9, 2], [7, 8, 9, 3], [7, 8, 9, 4]]
    assert joined.target.tolist() == [[False, False, False, True]] * 4
    assert joined.attention.all()
    assert joined.group.tolist() == [0, 1, 0, 1]


def test_texts_are_a_third_of_each_style(bench):
    draw = torch.Generator().manual_seed(0)
    reward = bench.world.reward(bench.texts(9000, draw))
    expected = [
        policy.expected(bench.world.token_reward)
        for policy in (bench.world.optimum(1.0), bench.world.language, bench.world.optimum(-1.0))
    ]
    assert float(reward.mean()) == pytest.approx(sum(expected) / 3, abs=0.05)
    assert expected[0] > expected[1] > expected[2]


def test_words_as_soft_prompts_are_the_words(bench):
    """Soft prompts that are the embeddings of the control texts give the same samples."""
    embedded = bench.model.get_input_embeddings()(bench.data[1]).detach()
    soft = ControlPrompts(embedded)
    for kind in (0, 1):
        assert bench.reward(bench.model, soft, kind) == bench.reward(bench.model, None, kind)
    assert bench.reward(bench.model, None, 0) != bench.reward(bench.model, None, 1)


def test_the_gap_is_good_minus_bad():
    assert ControlPoint(3, 2.5, 0.5).gap == 2.0
