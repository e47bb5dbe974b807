"""Prompts as arms: the rate is of items whose capital's first token is the model's first choice."""

from types import SimpleNamespace

import pytest
import torch

from tokenry.lab import prompt_arms
from tokenry.lab.models import language_model
from tokenry.lab.prompt_arms import CAPITALS, PREFIXES, prompt_rates


def test_every_prefix_asks_for_a_country_and_all_differ():
    assert len(set(PREFIXES)) == len(PREFIXES) == 24
    assert all(prefix.count("{}") == 1 for prefix in PREFIXES)
    assert len(set(CAPITALS.values())) == len(CAPITALS) == 18


def test_a_rate_counts_the_items_whose_capital_comes_first(monkeypatch):
    loaded = language_model("smoke")
    wanted = [loaded.tokenizer(f" {city}")["input_ids"][0] for city in list(CAPITALS.values())[:4]]
    chosen = [wanted[0], 5, wanted[2], wanted[3]]
    logits = torch.nn.functional.one_hot(torch.tensor(chosen), len(loaded.tokenizer)).float()
    monkeypatch.setattr(
        prompt_arms.DecodingState, "start", lambda *_: SimpleNamespace(logits=logits)
    )
    assert prompt_rates(loaded, 2, 4) == [0.75, 0.75]


def test_padding_changes_no_rate():
    """Each prompt alone, against all of them in one batch."""
    loaded = language_model("smoke")
    together = prompt_rates(loaded, 3, 3)
    first = []
    for prefix in PREFIXES[:3]:
        right = 0
        for country, capital in list(CAPITALS.items())[:3]:
            ids = loaded.tokenizer(prefix.format(country))["input_ids"]
            with torch.no_grad():
                best = int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
            right += best == loaded.tokenizer(f" {capital}")["input_ids"][0]
        first.append(pytest.approx(right / 3))
    assert together == first
