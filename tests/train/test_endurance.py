"""What a long run meets: kill -9, a loss that explodes, memory that runs out."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from gridvlp.errors import UserError
from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.train import loop as training
from gridvlp.train import pretraining
from gridvlp.train.finetuning import finetune
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain


def silent(_line):
    pass


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in lines(run) if "loss" in line]


def same_weights(one, other):
    for name, tensor in load_file(one / "model" / "model.safetensors").items():
        assert tensor.equal(load_file(other / "model" / "model.safetensors")[name]), name


def with_training(options, **changes):
    name = "-".join(map(str, changes.values()))
    return replace(
        options,
        run=options.run.with_name(name),
        training=replace(options.training, **changes),
    )


def arguments(command, options, run):
    """The command line of options; those that are None or empty are left to their defaults."""
    given = {
        name: value
        for name, value in {**vars(options), **asdict(options.training), "run": run}.items()
        if name not in ("training", "task", "features", "sources")
    }
    if command[0] == "pretrain":
        del given["head_lr_multiplier"]
    words = [*command, "--features", str(options.features[0])]
    for name, value in given.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def kill_at_a_random_step_and_resume(words, run, steps):
    """Run a command in a process of its own, kill -9 it at a random step, and give it again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "gridvlp.cli", *words]
    kill_at = random.SystemRandom().randrange(steps // 4, 3 * steps // 4)
    state = run / "checkpoint" / "state.json"

    def step():
        try:
            return json.loads(state.read_text())["step"]
        except (OSError, ValueError):  # not there yet, or just being replaced
            return 0

    killed = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while killed.poll() is None and step() < kill_at:
        time.sleep(0.002)
    killed.kill()
    _, told = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, told
    assert not (run / "result.json").exists()
    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    return kill_at


@pytest.mark.slow
def test_pre_training_killed_at_a_random_step_is_the_undisturbed_run(options, tmp_path):
    options = replace(options, training=replace(options.training, epochs=12, save_steps=1))
    pretrain(options, silent)
    run = tmp_path / "killed"
    words = arguments(["pretrain"], options, run)
    kill_at = kill_at_a_random_step_and_resume(words, run, steps=120)
    assert lines(run) == lines(options.run), f"killed at step {kill_at}"
    same_weights(run, options.run)


@pytest.mark.slow
def test_fine_tuning_killed_at_a_random_step_is_the_undisturbed_run(
    options, squares, task_training, tmp_path
):
    pretrain(options, silent)
    options = FineTuningOptions(
        "nlvr2",
        options.features,
        replace(task_training("nlvr2", epochs=12, ema=0.9), save_steps=1),
        data=squares / "data",
        init=options.run,
        run=tmp_path / "undisturbed",
        head="triplet",
    )
    finetune(options, silent)
    run = tmp_path / "killed"
    words = arguments(["finetune", "nlvr2"], options, run)
    kill_at = kill_at_a_random_step_and_resume(words, run, steps=48)
    assert lines(run) == lines(options.run), f"killed at step {kill_at}"
    same_weights(run, options.run)


def test_gradient_checkpointing_changes_no_loss(options):
    pretrain(options, silent)  # dropout is on: what is computed twice must drop the same
    other = with_training(options, gradient_checkpointing=True)
    pretrain(other, silent)
    assert losses(other.run) == losses(options.run)
    same_weights(other.run, options.run)


def test_the_average_of_the_weights_is_what_is_saved_and_the_training_is_not_touched(options):
    pretrain(options, silent)
    averaged = with_training(options, ema=0.5)
    pretrain(averaged, silent)
    assert losses(averaged.run) == losses(options.run)
    plain, mean = (
        load_file(run / "model" / "model.safetensors") for run in (options.run, averaged.run)
    )
    last = load_file(averaged.run / "checkpoint" / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert last[name].equal(plain[name])
    assert not mean[name].equal(plain[name])
    torch.testing.assert_close(mean[name], plain[name], atol=0.01, rtol=0)


def test_a_learning_rate_that_explodes_stops_with_the_images_named(options):
    wild = with_training(options, learning_rate=1e30)
    with pytest.raises(UserError, match=r"not finite at step \d+ .*images of the batch: 0000000"):
        pretrain(wild, silent)
    assert not (wild.run / "result.json").exists()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_out_of_memory_names_the_options_that_help(options, monkeypatch, error):
    def broken(model, batch):
        raise error

    monkeypatch.setattr(pretraining, "losses", broken)
    with pytest.raises(UserError, match=r"--accumulate .*\(now 1\) or --gradient-checkpointing"):
        pretrain(options, silent)


def test_any_other_error_is_not_taken_for_it(options, monkeypatch):
    def broken(model, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(pretraining, "losses", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        pretrain(options, silent)


def test_rates_fall_from_the_head_to_the_embeddings(options):
    from gridvlp.train.model.fusion import GridVLPConfig, GridVLPForAnswering

    config = GridVLPConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        grid_channels=4,
        answers=["a"],
    )
    model = GridVLPForAnswering(config)
    settings = replace(
        options.training, learning_rate=1.0, layer_lr_decay=0.5, head_lr_multiplier=10.0
    )
    optimizer = training._make_optimizer(model, settings, "answering")
    rate_of = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    rates = {name: rate_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert rates["answering.classifier.weight"] == 10
    assert rates["bert.pooler.dense.weight"] == 1
    assert rates["bert.encoder.layer.1.output.dense.bias"] == 0.5
    assert rates["bert.encoder.layer.0.output.dense.bias"] == 0.25
    assert rates["bert.embeddings.word_embeddings.weight"] == 0.125
    assert rates["bert.grid_projection.weight"] == 0.125
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}  # BERT's
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert {name for name, p in model.named_parameters() if id(p) not in decayed} == {
        name for name, p in model.named_parameters() if p.ndim == 1
    }


def test_data_that_changed_under_a_run_are_noticed(options, squares, tmp_path, monkeypatch):
    from tests.squares import write_data

    write_data(tmp_path / "data")
    options = replace(options, data=tmp_path / "data")

    def stop(model, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "losses", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(options, silent)
    captions = tmp_path / "data/coco/annotations/captions_train2017.json"
    captions.write_text(captions.read_text().replace("A red square.", "A round square."))
    with pytest.raises(UserError, match=r"data have changed .*\(corpus"):
        pretrain(options, silent)

    monkeypatch.undo()
    finished = replace(options, run=tmp_path / "finished")
    pretrain(finished, silent)
    captions.write_text(captions.read_text().replace("A round square.", "A tall square."))
    with pytest.raises(UserError, match=r"data have changed .*\(corpus"):
        pretrain(finished, silent)  # its figures are of other data


def test_maps_that_were_rounded_otherwise_under_a_run_are_noticed(options, squares, tmp_path):
    place = tmp_path / "store.zarr"
    options = replace(options, features=(place,))
    whole = FeatureStore(squares / "store.zarr")

    def write(dtype):
        shutil.rmtree(place, ignore_errors=True)
        with StoreWriter.create(
            place, channels=whole.channels, max_grids=16, dtype=dtype, encoder=whole.encoder
        ) as writer:
            for key in whole.keys():  # noqa: SIM118 - a store is not a dict
                writer.add(key, whole.map(key))

    write("float16")
    pretrain(options, silent)
    write("int8")
    with pytest.raises(UserError, match=r"data have changed .*\(recipe"):
        pretrain(options, silent)
