"""SkipDecode: fine-tuning on the schedule lowers its loss."""

import copy

import pytest
import torch

from tokenry.core.errors import InputError
from tokenry.learn.recipes.skipdecode import train_on_schedule
from tokenry.model.adaptive.skipdecode import SkipDecode


def batches_of(count=2, rows=8, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 64, (rows, length), generator=generator) for _ in range(count)]


def test_fine_tuning_on_the_schedule_lowers_its_loss(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    batches = [ids % 8 + 2 for ids in batches_of(2)]
    labels = batches[0].clone()
    labels[:, :9] = -100
    with SkipDecode(3, 2, 8).attach(model) as attached:
        batch = {"input_ids": batches[0], "labels": labels}
        losses = train_on_schedule(
            attached, [batch], steps=30, learning_rate=3e-3, prompt_columns=8
        )
        assert losses[-1] < losses[0]
    with pytest.raises(InputError, match="batches"):
        train_on_schedule(attached, [], steps=3)
