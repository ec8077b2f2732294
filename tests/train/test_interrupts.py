"""Ctrl-C and SIGTERM at every phase of an epoch: the resumed run is the undisturbed one."""

import json
import signal
from dataclasses import replace
from unittest import mock

import pytest

from gridvlp.run.folder import RunFolder
from gridvlp.run.prefetch import Prefetch
from gridvlp.run.signals import Termination, interrupts_held, termination_interrupts
from gridvlp.train import finetuning, pretraining
from gridvlp.train import loop as training
from gridvlp.train.finetuning import finetune
from gridvlp.train.model.fusion import GridVLPForPreTraining
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain
from tests.train.test_endurance import lines, same_weights, silent

PHASES = {  # what is called then, and which call of it is struck; an epoch has 10 steps
    "between steps": (Prefetch, "_take", 13),
    "within a step": (pretraining, "losses", 13),
    "in an epoch's last step": (pretraining, "losses", 20),
    "in the last step": (pretraining, "losses", 30),
    "while a checkpoint is written": (GridVLPForPreTraining, "save_pretrained", 6),
    "while an epoch's checkpoint is written": (RunFolder, "save_checkpoint", 6),
    "while it logs": (RunFolder, "log", 3),
    "in a validation": (pretraining, "held_out_accuracy", 2),
    "in the last validation": (pretraining, "held_out_accuracy", 3),
    "while the model is written": (training, "write_card", 2),
    "after the model is written": (RunFolder, "save_state", 2),
    "at the end": (RunFolder, "finish", 1),
}


def struck(where, name, call, number=signal.SIGINT):
    """A patch under which the call of that number is met by a signal."""
    original, count = getattr(where, name), 0

    def strike(*arguments, **named):
        nonlocal count
        count += 1
        if count == call:
            signal.raise_signal(number)
        return original(*arguments, **named)

    return mock.patch.object(where, name, strike)


def check_same(options, undisturbed):
    assert lines(options.run) == lines(undisturbed)
    same_weights(options.run, undisturbed)
    results = [json.loads((run / "result.json").read_text()) for run in (options.run, undisturbed)]
    for result in results:
        del result["waited_seconds"]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def undisturbed(squares, tmp_path_factory):
    """Runs that nobody interrupted, by how they were trained."""
    made = {}

    def run(options):
        known = (options.training.epochs, options.training.ema)
        if known not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            pretrain(replace(options, run=folder), silent)
            made[known] = folder
        return made[known]

    return run


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *((phase, signal.SIGINT) for phase in PHASES),
        ("within a step", signal.SIGTERM),
        ("in the last validation", signal.SIGTERM),
    ],
)
def test_a_run_that_is_interrupted_goes_on_as_if_it_were_not(options, undisturbed, phase, number):
    options = replace(options, training=replace(options.training, ema=0.9))
    kind = Termination if number == signal.SIGTERM else KeyboardInterrupt
    with termination_interrupts(), struck(*PHASES[phase], number), pytest.raises(kind):
        pretrain(options, silent)
    assert not (options.run / "result.json").exists() or phase == "at the end"
    pretrain(options, silent)
    check_same(options, undisturbed(options))


@pytest.mark.parametrize(
    "phase", [(pretraining, "losses", 10), (pretraining, "held_out_accuracy", 1)]
)
def test_the_only_epochs_validation_is_made_up_for(options, undisturbed, phase):
    options = replace(options, training=replace(options.training, epochs=1))
    for _ in range(2):  # twice within the same validation, as an impatient person does
        with struck(*phase), pytest.raises(KeyboardInterrupt):
            pretrain(options, silent)
        phase = (pretraining, "held_out_accuracy", 1)
    assert pretrain(options, silent)["epoch"] == 1
    check_same(options, undisturbed(options))


def test_two_signals_in_one_step_interrupt_once(options, undisturbed):
    original = pretraining.losses

    def twice(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    with mock.patch.object(pretraining, "losses", twice), pytest.raises(KeyboardInterrupt):
        pretrain(options, silent)
    assert json.loads((options.run / "checkpoint" / "state.json").read_text())["step"] == 1
    pretrain(options, silent)
    check_same(options, undisturbed(options))


@pytest.mark.parametrize(
    "phase",
    [(finetuning, "predict", 2), (training, "write_card", 1), (RunFolder, "save_state", 3)],
)
def test_the_best_epoch_is_the_best_of_all_after_an_interruption(
    options, squares, task_training, tmp_path, phase
):
    pretrain(options, silent)
    fine = FineTuningOptions(
        "vqa",
        options.features,
        task_training("vqa", epochs=3, learning_rate=5e-3),
        data=squares / "data",
        init=options.run,
        run=tmp_path / "undisturbed",
    )
    finetune(fine, silent)
    other = replace(fine, run=tmp_path / "interrupted")
    with struck(*phase), pytest.raises(KeyboardInterrupt):
        finetune(other, silent)
    finetune(other, silent)
    check_same(other, fine.run)


def test_a_checkpoint_of_an_older_version_owes_the_validation_of_its_whole_epoch(options):
    options = replace(options, training=replace(options.training, epochs=1))
    with struck(pretraining, "held_out_accuracy", 1), pytest.raises(KeyboardInterrupt):
        pretrain(options, silent)
    state = options.run / "checkpoint" / "state.json"
    state.write_text(json.dumps({"step": 10, "kept": None}))
    assert pretrain(options, silent)["epoch"] == 1


def hold(number, done):
    with interrupts_held(), interrupts_held() as came:
        signal.raise_signal(number)
        assert came == [number]
        done.append(number)


def test_a_block_that_holds_signals_raises_them_at_its_end():
    done = []
    with termination_interrupts():
        for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Termination)):
            with pytest.raises(kind):
                hold(number, done)
    assert done == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held() as came:
            signal.raise_signal(signal.SIGINT)
        assert came == []
    finally:
        signal.signal(signal.SIGINT, before)
