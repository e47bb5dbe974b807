"""Training of modules that share weights."""

import torch
from torch import nn

from tokenry.learn.recipes.sequence_to_sequence.training import fit


def test_fit_trains_shared_weights_once_and_lowers_the_loss():
    torch.manual_seed(0)
    layer = nn.Linear(4, 1)
    wanted = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])

    def loss(generator):
        inputs = torch.randn(64, 4, generator=generator)
        return (layer(inputs) - inputs @ wanted).square().mean()

    losses = fit(loss, [layer, nn.Sequential(layer)], steps=300, learning_rate=0.1, seed=0)
    assert len(losses) == 300
    assert losses[-1] < 1e-3 * losses[0]
    assert not layer.training
