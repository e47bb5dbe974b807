import pytest
import torch

from tokenry.tasks.worlds.annotation import (
    FIRST_LABEL,
    LABEL_PLACES,
    SCAFFOLD,
    START,
    VOCABULARY,
    Annotation,
    answers,
)

TASK = Annotation(seed=1)


def test_each_half_is_labelled_by_its_most_frequent_symbol():
    prompts, labels = TASK.draw(300, torch.Generator().manual_seed(0))
    assert (prompts[:, 0] == START).all()
    for prompt, pair in zip(prompts.tolist(), labels.tolist(), strict=True):
        for half, label in enumerate(pair):
            symbols = prompt[1 + 4 * half : 5 + 4 * half]
            most = min(symbols, key=lambda symbol: (-symbols.count(symbol), symbol))
            assert label == TASK.rule[half, most]


def test_noise_is_the_chance_of_any_label():
    clean, noisy = (TASK.draw(20_000, torch.Generator().manual_seed(4), n)[1] for n in (0.0, 0.25))
    assert float((clean != noisy).double().mean()) == pytest.approx(0.25 * 5 / 6, abs=0.01)


def test_the_scaffold_holds_the_labels_at_their_places():
    rows = answers(torch.tensor([[0, 5], [3, 1]]))
    assert rows.shape == (2, 14)
    assert rows[:, LABEL_PLACES].tolist() == [[FIRST_LABEL, FIRST_LABEL + 5], [15, 13]]
    rest = [n for n in range(14) if n not in LABEL_PLACES]
    assert rows[0, rest].tolist() == list(range(SCAFFOLD, START))
    assert VOCABULARY == START + 1 == 31
