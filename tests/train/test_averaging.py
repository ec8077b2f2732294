"""The average of the weights against its definition."""

import pytest
import torch

from gridvlp.train.averaging import Average


def averaged(decay, weights):
    """What is kept of a parameter that goes through ``weights``, and how much of the first."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(weights[0])
    average = Average(model, decay)
    for step, weight in enumerate(weights[1:]):
        model.weight.data.fill_(weight)
        average.update(step)
    return float(average.averages["weight"])


def test_the_first_steps_are_forgotten_at_once():
    """TensorFlow's min(decay, (1 + n) / (10 + n))."""
    expected = 0.0
    for step, weight in enumerate([3.0, 5.0, 4.0]):
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * weight
    assert averaged(0.9999, [0.0, 3.0, 5.0, 4.0]) == pytest.approx(expected, rel=1e-6)
    assert averaged(0.9999, [1.0] + [0.0] * 1000) < 1e-9


def test_the_decay_is_reached_and_not_passed():
    weights = [1.0] + [0.0] * 40
    kept = 1.0
    for step in range(40):
        kept *= min(0.5, (1 + step) / (10 + step))
    assert averaged(0.5, weights) == pytest.approx(kept, rel=1e-5)
    assert averaged(0.0, [1.0, 7.0]) == 7.0
