"""The running average of weights."""

import torch
from torch import nn

from twostage.training.ema import EMA


def test_average_follows_with_less_inertia_early_on() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = EMA(model, decay=0.9)
    expected, values = 0.0, [1.0, 2.0, 5.0]
    for update, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        average.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.model.weight.item(), expected)


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm2d(2)
    average = EMA(model, decay=0.5)
    model(torch.randn(4, 2, 3, 3) + 7)
    average.update(model)
    assert average.model.num_batches_tracked.item() == 1
    assert (average.model.running_mean > 0.1).all()
    assert (average.model.running_mean < model.running_mean).all()
    assert not average.model.training
