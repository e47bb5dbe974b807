"""The captioner: captions say what their rule says, and training learns to write them."""

import torch

from tokenry.lab.captioner import ADJECTIVES, END, LIMIT, LONGEST, NAMES, START, caption, captioner
from tokenry.measure.audit.verbosity import Generated
from tokenry.tasks.worlds.digits import Digits


def test_more_ink_means_more_adjectives():
    draw = torch.Generator().manual_seed(0)
    for digit, ink, stop in ((4, 0.0, 0.9), (8, 0.5, 0.55)):
        texts = [caption(digit, ink, draw) for _ in range(2000)]
        assert all(text.split()[0] == NAMES[digit] for text in texts)
        assert {f" {word}" for text in texts for word in text.split()[1:]} == set(ADJECTIVES)
        counts = torch.tensor([len(text.split()) - 1 for text in texts])
        assert abs(float((counts == 0).float().mean()) - stop) < 0.03
        assert abs(float((counts[counts > 0] == 1).float().mean()) - stop) < 0.06
        assert max(map(len, texts)) < LONGEST


def test_captions_end_within_the_limit_and_anomaly_scores_each_of_them():
    world = Digits(1, held_out=3)
    model = captioner(world, steps=1, batch=2)
    texts = model.captions(world.test_images.repeat(2, 1, 1), torch.Generator().manual_seed(0))
    assert texts.lengths.shape == (6,)
    assert int(texts.lengths.max()) <= LIMIT
    scores = model.anomaly(world.test_images, texts)
    assert scores.shape == (6,)
    alone = Generated(texts.tokens[4:5], texts.lengths[4:5])
    torch.testing.assert_close(model.anomaly(world.test_images[1:2], alone)[0], scores[4])
    embedded, attention = model.prefix(world.test_images)
    assert embedded.shape[:2] == attention.shape == (3, 5)
    assert torch.equal(embedded[0, -1], model.writer.get_input_embeddings().weight[START])
    assert END in texts.tokens
