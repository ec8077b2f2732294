import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.train.evaluation import evaluate, load_finetuned
from gridvlp.train.finetuning import finetune
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain
from gridvlp.train.relevance import explain
from gridvlp.train.tasks.nlvr2 import NLVR2
from gridvlp.train.tokenization import Encoder, load_tokenizer
from tests.squares import CHANNELS, grid_map, write_store


def silent(_line):
    pass


@pytest.fixture(scope="module")
def pretrained(squares, tmp_path_factory):
    from gridvlp.train.options import PreTrainingOptions, TrainingSettings

    run = tmp_path_factory.mktemp("pretrained")
    training = TrainingSettings(2e-3, 12, 16, 0.1, precision="float32")
    pretrain(
        PreTrainingOptions(
            features=(squares / "store.zarr",),
            data=squares / "data",
            run=run,
            grids=4,
            hidden_size=32,
            layers=2,
            heads=2,
            dropout=0.0,
            initializer_range=0.1,
            training=training,
        ),
        silent,
    )
    return run


@pytest.fixture
def make(squares, pretrained, task_training, tmp_path):
    def options(task, **changes):
        training = changes.pop("training", {})
        return FineTuningOptions(
            task,
            (squares / "store.zarr",),
            task_training(task, **training),
            data=squares / "data",
            init=pretrained,
            run=tmp_path / task,
            **changes,
        )

    return options


def test_vqa_is_learned_from_the_photo_and_not_from_the_text(make):
    told = []
    options = make("vqa", training={"epochs": 8})
    figures = finetune(options, told.append)
    assert figures["accuracy"] == 100
    assert any("Encoder and answer head from" in line for line in told)
    outcome = evaluate("vqa", "val", run=options.run, withheld=True, say=silent)
    assert outcome.figures["accuracy"] == 100
    assert outcome.withheld["accuracy"] <= 60
    assert outcome.majority == 50
    answers = json.loads(outcome.predictions.read_text())
    assert {type(a["question_id"]) for a in answers} == {int}
    card = (options.run / "model" / "README.md").read_text()
    for line in ("# Grid-VLP, finetune vqa", "| name | squares |", "| accuracy | 100 |"):
        assert line in card
    assert "| task | vqa |" in card
    assert "## Licence" in card
    recorded = json.loads((options.run / "evaluate-val" / "metrics.json").read_text())
    assert recorded["figures"]["accuracy"] == 100
    assert recorded["majority"] == 50
    records = [
        json.loads(line)
        for line in (options.run / "evaluate-val" / "examples.jsonl").read_text().splitlines()
    ]
    assert [r["id"] for r in records] == [str(a["question_id"]) for a in answers]
    assert [r["predicted"] for r in records] == [a["answer"] for a in answers]
    assert {r["score"] for r in records} == {1.0}
    first = records[0]
    assert first["sentence"] == "What color is the square?"
    assert (first["images"], first["kind"]) == (["000000000033"], "what")
    assert first["truth"]["answers"] == ["blue"] * 10
    assert first["labels"] == {"blue": 1.0}
    answered, chances = zip(*first["top"], strict=True)
    assert (answered[0], len(answered)) == ("blue", 4)
    assert list(chances) == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-5)


def test_with_one_annotator_the_best_epoch_is_that_of_exact_match(make, squares, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(squares / "data", data)
    for path in (data / "vqa").glob("*annotations.json"):
        file = json.loads(path.read_text())
        for entry in file["annotations"]:
            entry["answers"] = entry["answers"][:1]
        path.write_text(json.dumps(file))
    told = []
    options = replace(make("vqa", training={"epochs": 6}), data=data)
    figures = finetune(options, told.append)
    logged = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()]
    by_epoch = [line["exact match"] for line in logged if "exact match" in line]
    assert len(by_epoch) == 6
    assert figures["accuracy"] == 0
    assert figures["exact match"] == max(by_epoch) > by_epoch[0]
    assert figures["epoch"] == by_epoch.index(max(by_epoch)) + 1 > 1
    ceilings = [line for line in told if "cannot exceed 0.0% on them" in line]
    assert len(ceilings) == 2  # of train and minival; nominival is empty
    outcome = evaluate("vqa", "minival", run=options.run, say=told.append)
    assert outcome.figures["exact match"] == figures["exact match"]
    assert any("On vqa minival the best epoch was chosen" in line for line in told)


def test_a_split_that_is_chosen_by_and_reported_on_is_told(make):
    told = []
    finetune(make("nlvr2", training={"epochs": 1}), told.append)
    assert not any("on which it is reported" in line for line in told)
    options = make("nlvr2", training={"epochs": 1}, valid_split="dev", train_splits=("train",))
    options = replace(options, run=options.run.with_name("again"))
    NLVR2.test_split, before = "dev", NLVR2.test_split
    try:
        finetune(options, told.append)
    finally:
        NLVR2.test_split = before
    assert "The best epoch is chosen on nlvr2 dev, on which it is reported, too." in told


def test_a_store_of_the_evaluated_photos_alone_is_enough(make, squares, tmp_path):
    """The baseline counts training lines, whose photos need not be there; nor need the lines."""
    options = make("vqa", training={"epochs": 1})
    finetune(options, silent)
    whole = evaluate("vqa", "val", run=options.run, say=silent)
    stored = FeatureStore(squares / "store.zarr")
    with StoreWriter.create(
        tmp_path / "val.zarr", channels=CHANNELS, encoder=stored.encoder
    ) as writer:
        for image in range(33, 49):
            writer.add(f"{image:012}", stored.map(f"{image:012}"))
    alone = evaluate("vqa", "val", run=options.run, features=(tmp_path / "val.zarr",), say=silent)
    assert (alone.figures, alone.majority) == (whole.figures, whole.majority)
    data, told = tmp_path / "data", []
    (data / "vqa").mkdir(parents=True)
    for file in (squares / "data" / "vqa").glob("*val2014*"):
        (data / "vqa" / file.name).write_bytes(file.read_bytes())
    untrained = evaluate("vqa", "val", run=options.run, data=data, say=told.append)
    assert (untrained.figures, untrained.majority) == (whole.figures, None)
    assert any("No majority baseline: " in line and "train2014" in line for line in told)


@pytest.mark.parametrize("head", ["pair", "triplet", "pair-attention"])
def test_nlvr2_pairs_are_told_apart(make, head):
    options = make("nlvr2", head=head, training={"epochs": 30})
    assert finetune(options, silent)["accuracy"] >= 90
    outcome = evaluate("nlvr2", "dev", run=options.run, say=silent)
    assert outcome.withheld is None
    assert outcome.predictions.suffix == ".csv"
    assert len(outcome.predictions.read_text().splitlines()) == outcome.examples == 16


def test_a_tasks_own_options_are_its_own(make):
    with pytest.raises(UserError, match="vqa has no option --head"):
        finetune(make("vqa", head="pair"), silent)
    with pytest.raises(UserError, match="no head 'pairs'; it has pair, triplet, pair-attention"):
        finetune(make("nlvr2", head="pairs"), silent)


def test_batch_size_does_not_change_the_answers(make):
    options = make("vqa")
    finetune(options, silent)
    files = [
        evaluate(
            "vqa", "val", run=options.run, batch_size=size, precision="float32", say=silent
        ).predictions.read_text()
        for size in (1, 7, 64)
    ]
    assert files[0] == files[1] == files[2]


def test_the_best_epoch_is_kept_and_a_finished_run_is_left_alone(make):
    options = make("vqa", training={"epochs": 3})
    figures = finetune(options, silent)
    told = []
    assert finetune(options, told.append)["step"] == figures["step"]
    assert any("finished already" in line for line in told)


def test_fresh_weights_are_other_weights(make):
    one, other = make("vqa"), make("vqa", fresh=True)
    told = []
    finetune(replace(other, run=one.run.with_name("fresh")), told.append)
    assert any("from scratch" in line for line in told)


def test_what_is_missing_is_said_with_the_command_that_makes_it(make, squares, tmp_path):
    with pytest.raises(UserError, match="gridvlp pretrain"):
        finetune(replace(make("vqa"), init=tmp_path / "nothing"), silent)
    with pytest.raises(UserError, match="gridvlp finetune gqa"):
        evaluate("gqa", "testdev", run=tmp_path / "nothing", say=silent)
    with pytest.raises(UserError, match=r"gqa/.*_balanced_questions.json"):
        finetune(make("gqa", train_splits=("testdev",)), silent)
    with pytest.raises(UserError, match="Did you mean nlvr2"):
        finetune(replace(make("vqa"), task="nlvr"), silent)


def test_maps_of_another_encoder_are_refused(make, squares, tmp_path):
    rng = np.random.default_rng(0)
    for name, channels, encoder in (
        ("weights", CHANNELS, {"name": "squares", "weights_sha256": "1" * 64}),
        ("channels", 2 * CHANNELS, {"name": "squares", "weights_sha256": "0" * 64}),
    ):
        with StoreWriter.create(
            tmp_path / name, channels=channels, max_grids=16, dtype="float16", encoder=encoder
        ) as writer:
            map_CHW = grid_map(0, rng)
            writer.add("000000000001", np.tile(map_CHW, (channels // CHANNELS, 1, 1)))
    options = make("vqa")
    with pytest.raises(UserError, match="maps of another recipe"):
        finetune(replace(options, features=(tmp_path / "weights",)), silent)
    lines = []
    finetune(replace(options, features=(tmp_path / "weights",), other_recipe=True), lines.append)
    assert any("weights_sha256" in line and "wanted, by --other-recipe" in line for line in lines)
    with pytest.raises(UserError, match="grids of 8 channels; the store has 16"):
        finetune(replace(options, features=(tmp_path / "channels",)), silent)
    write_store(tmp_path / "regions", kind="regions")
    with pytest.raises(UserError, match="trained on grids; the store holds regions"):
        finetune(replace(options, features=(tmp_path / "regions",)), silent)


def test_another_tasks_run_is_refused(make):
    options = make("vqa")
    finetune(options, silent)
    with pytest.raises(UserError, match="not fine-tuned on nlvr2, but on vqa"):
        evaluate("nlvr2", "dev", run=options.run, say=silent)


def test_a_model_that_does_not_fit_is_refused(make):
    options = make("vqa")
    finetune(options, silent)
    config = options.run / "model" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(UserError, match=r"do not fit .* missing"):
        evaluate("vqa", "val", run=options.run, say=silent)


def test_relevance_points_at_the_grid_that_decides(make, squares, tmp_path):
    options = make("vqa", training={"epochs": 8})
    finetune(options, silent)
    model, task, _ = load_finetuned(options.run, "vqa")
    rng = np.random.default_rng(3)
    map_CHW = np.zeros((CHANNELS, 3, 4), np.float32)
    map_CHW[0, 1, 2] = map_CHW[1, 0, 3] = 1.0  # a red and a blue grid among empty ones
    with StoreWriter.create(
        tmp_path / "s", channels=CHANNELS, max_grids=12, dtype="float16", encoder={}
    ) as writer:
        writer.add("000000000033", map_CHW)
    del rng
    store = FeatureStore(tmp_path / "s")
    example = next(
        e
        for e in task.read(squares / "data", "val", store).examples
        if e.sentence.startswith("What")
    )
    found = explain(model, example, task, store, Encoder(load_tokenizer(options.run / "model")))
    place = {"red": (1, 2), "blue": (0, 3)}[found.answers[0][0]]
    assert np.unravel_index(found.relevance_HW[0].argmax(), (3, 4)) == place
    assert sum(chance for _, chance in found.answers) <= 1 + 1e-6
    assert torch.tensor([chance for _, chance in found.answers]).diff().le(0).all()
