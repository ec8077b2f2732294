"""Training in float16 scales its loss; a gradient that overflows skips a step.

A CPU stands in for the GPU: PyTorch's scaler works on both.
"""

import json
from dataclasses import replace
from unittest import mock

import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.train import loop as training
from gridvlp.train import pretraining
from gridvlp.train.pretraining import pretrain
from gridvlp.train.processes import make_accelerator
from tests.train.test_endurance import lines, same_weights, silent
from tests.train.test_grids import copy
from tests.train.test_interrupts import struck


@pytest.fixture(autouse=True)
def half(monkeypatch):
    """Accelerate's float16 with its scaler, which it makes on a GPU alone."""

    def make(precision):
        accelerator = make_accelerator("float32")
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        return accelerator

    monkeypatch.setattr(pretraining, "make_accelerator", make)


def overflowing(*steps):
    """A patch under which the scaled gradient of steps (from 0) is beyond any number."""
    original, count = pretraining.losses, -1

    def losses(model, batch):
        nonlocal count
        count += 1
        factor = 1e35 if count in steps else 1.0
        return {n: (value * factor, terms) for n, (value, terms) in original(model, batch).items()}

    return mock.patch.object(pretraining, "losses", losses)


def state(options):
    return json.loads((options.run / "checkpoint" / "state.json").read_text())


@pytest.mark.slow
def test_float16_trains_as_float32_does(options, monkeypatch):
    options = replace(options, dropout=0.0)
    pretrain(options, silent)
    assert state(options)["skipped"] == 0
    monkeypatch.undo()
    exact = replace(options, run=options.run.with_name("float32"))
    pretrain(exact, silent)
    for one, other in zip(lines(options.run), lines(exact.run), strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


def test_a_gradient_that_overflows_skips_its_step_and_is_counted(options, capsys):
    with overflowing(4, 5, 17):
        pretrain(options, silent)
    assert state(options)["skipped"] == 3
    assert state(options)["scaler"]["scale"] == 256 / 8
    assert "3 of 30 steps were skipped" in capsys.readouterr().err


def test_a_skipped_step_leaves_the_weights_alone(options):
    options = replace(options, training=replace(options.training, epochs=1, save_steps=1))
    with overflowing(0), struck(pretraining, "losses", 1), pytest.raises(KeyboardInterrupt):
        pretrain(options, silent)
    assert (state(options)["step"], state(options)["skipped"]) == (1, 1)
    seen = []
    start = training._Training.start

    def watched(self, head):
        seen.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
        start(self, head)
        seen.append({n: p.detach().clone() for n, p in self.model.named_parameters()})

    with mock.patch.object(training._Training, "start", watched):
        pretrain(options, silent)
    fresh, restored = seen
    for name, value in restored.items():
        assert value.equal(fresh[name]), name


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_scale(options):
    with overflowing(2):
        pretrain(options, silent)
    other = replace(options, run=options.run.with_name("interrupted"))
    with overflowing(2), struck(pretraining, "losses", 9), pytest.raises(KeyboardInterrupt):
        pretrain(other, silent)
    assert state(other)["scaler"]["scale"] == 128
    pretrain(other, silent)
    assert state(other)["scaler"] == state(options)["scaler"]
    assert lines(other.run) == lines(options.run)
    same_weights(other.run, options.run)


def test_a_training_that_overflows_for_ever_has_diverged(options):
    with overflowing(*range(5, 30)), pytest.raises(UserError, match="not finite at step 25 "):
        pretrain(options, silent)
    assert not (options.run / "result.json").exists()


def test_a_loss_that_is_not_finite_is_no_scales_doing(options):
    original = pretraining.losses

    def broken(model, batch):
        return {n: (v * float("nan"), t) for n, (v, t) in original(model, batch).items()}

    with (
        mock.patch.object(pretraining, "losses", broken),
        pytest.raises(UserError, match="not finite at step 1 "),
    ):
        pretrain(options, silent)


def test_a_map_beyond_float16_is_named(options, squares, tmp_path):
    path = copy(squares / "store.zarr", tmp_path / "s", "bfloat16", of_000000000003=1e6)
    options = replace(options, features=(path,))
    with pytest.raises(UserError, match="maps of 000000000003 hold numbers beyond float16"):
        pretrain(options, silent)


def test_a_processor_has_no_float16(monkeypatch):
    with pytest.raises(UserError, match="float16 needs a GPU"):
        make_accelerator("float16")
