"""The gradient of a step against one from the definitions, however the step is divided."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from gridvlp.train.finetuning import finetune
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain
from tests.squares import write_store
from tests.train.recording import recorded
from tests.train.reference import Reference, pretraining_loss, task_loss
from tests.train.two_processes import run_together

HEADS = {"vqa": ("answer",), "nlvr2": ("pair", "triplet", "pair-attention")}
RUNS = ["pretrain", *HEADS["vqa"], *HEADS["nlvr2"]]


def silent(_line):
    pass


def train(options):
    """Train without moving: gradients, rates and batches of each step."""
    with recorded() as seen:
        (pretrain if not hasattr(options, "task") else finetune)(options, silent)
    return seen


def loss_of(reference, batches, name):
    if name == "pretrain":
        return pretraining_loss(reference, batches)
    return task_loss(reference, batches, name)


def check(options, name, gradients, batches, limit=1e-5):
    """Compare the gradient of a step with that of the definitions on the same batches."""
    weights = load_file(options.run / "model" / "model.safetensors")
    reference = Reference(weights, heads=2)
    loss_of(reference, batches, name).backward()
    expected = reference.gradients()
    assert gradients.keys() <= expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for parameter, value in expected.items():
        if parameter not in gradients:  # tied to another
            continue
        off = float((gradients[parameter].double() - value).norm())
        assert off <= limit * largest + limit * float(value.norm()), parameter
    whole = [torch.cat([g[n].double().flatten() for n in gradients]) for g in (gradients, expected)]
    assert float(whole[0].norm()) == pytest.approx(float(whole[1].norm()), rel=limit)


@pytest.fixture(scope="module")
def runs(squares, tmp_path_factory):
    """Options of each run, by name, for a folder of runs of their own; pre-trained once."""
    from gridvlp.train.options import FINE_TUNING, PreTrainingOptions, TrainingSettings

    folder = tmp_path_factory.mktemp("gradients")
    common = {"precision": "float32", "clip": 0.0, "epochs": 1}
    made = {
        "pretrain": PreTrainingOptions(
            features=(squares / "store.zarr",),
            data=squares / "data",
            run=folder / "pretrain",
            grids=4,
            hidden_size=16,
            layers=2,
            heads=2,
            dropout=0.0,
            initializer_range=0.2,
            training=TrainingSettings(1.0, batch_size=80, warmup=0.5, **common),
        )
    }
    for task, heads in HEADS.items():
        for head in heads:
            made[head] = FineTuningOptions(
                task,
                (squares / "store.zarr",),
                replace(FINE_TUNING[task], batch_size=16, **common),
                data=squares / "data",
                init=folder / "pretrain",
                run=folder / head,
                head=head if task == "nlvr2" else None,
            )
    with recorded():
        pretrain(made["pretrain"], silent)
    return made


def again(options, name, **changes):
    """The same run in a folder of its own with other training settings."""
    return replace(
        options,
        run=options.run.with_name(f"{options.run.name}-{name}"),
        training=replace(options.training, **changes),
    )


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_gradient_is_that_of_the_whole_batch(runs, name, accumulate):
    options = again(runs[name], f"by-{accumulate}", accumulate=accumulate)
    seen = train(options)
    assert len(seen.gradients) == len(seen.batches) > 1
    for step in (0, len(seen.gradients) - 1):
        assert len(seen.batches[step]) == accumulate
        check(options, name, seen.gradients[step], seen.batches[step])


@pytest.mark.parametrize("name", RUNS)
def test_the_gradient_of_bfloat16_is_the_same_within_its_precision(runs, name):
    options = again(runs[name], "bfloat16", precision="bfloat16")
    seen = train(options)
    assert {g.dtype for g in seen.gradients[0].values()} == {torch.float32}
    check(options, name, seen.gradients[0], seen.batches[0], limit=0.05)


def test_the_gradient_on_regions_has_their_boxes(runs, tmp_path):
    write_store(tmp_path / "regions.zarr", kind="regions")
    options = replace(
        runs["pretrain"], features=(tmp_path / "regions.zarr",), run=tmp_path / "regions"
    )
    seen = train(options)
    assert "bert.box_projection.weight" in seen.gradients[0]
    check(options, "pretrain", seen.gradients[0], seen.batches[0])


def test_the_gradient_is_clipped_to_its_norm_and_keeps_its_direction(runs):
    plain = train(again(runs["answer"], "unclipped", clip=0.0)).gradients[0]
    norm = float(torch.cat([g.flatten() for g in plain.values()]).norm())
    for clip in (norm / 2, 2 * norm):
        clipped = train(again(runs["answer"], f"clip-{clip / norm}", clip=clip)).gradients[0]
        for name, gradient in clipped.items():
            expected = plain[name] * min(1.0, clip / norm)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-9, msg=name)


def test_the_rate_rises_in_a_line_and_falls_in_a_line_to_zero(runs):
    """BERT's and LXMERT's schedule at 8 steps, of which a quarter warms up."""
    options = again(runs["answer"], "rates", warmup=0.25, epochs=2, learning_rate=0.8)
    rates = [group[0] for group in train(options).rates]
    assert len(rates) == 8
    peak = 1.0  # of the recording optimiser
    assert rates == pytest.approx(
        [peak * r for r in (1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    )


def record_all(rank, options):
    """In each of two processes: gradients and batches of every run."""
    return {name: vars(train(one)) for name, one in options.items()}


@pytest.fixture(scope="module")
def together(runs, tmp_path_factory):
    options = {name: again(one, "two", accumulate=2) for name, one in runs.items()}
    return options, run_together(record_all, tmp_path_factory.mktemp("two"), options)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_gradient_of_one(together, name):
    options, (first, second) = together
    one, two = first[name], second[name]
    assert len(one["gradients"]) > 1
    for step, gradients in enumerate(one["gradients"]):
        for parameter, gradient in gradients.items():
            assert gradient.equal(two["gradients"][step][parameter]), parameter
    batches = one["batches"][0] + two["batches"][0]
    assert len(batches) == 4
    check(options[name], name, one["gradients"][0], batches)
