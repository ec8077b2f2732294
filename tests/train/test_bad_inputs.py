"""Bad inputs through the command line; docs/troubleshooting.md lists what each one gets."""

import json
import shutil

import numpy as np
import pytest

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.train.pretraining import pretrain
from tests.squares import CHANNELS, write_data, write_store

QUESTIONS = "data/vqa/v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "data/vqa/v2_mscoco_train2014_annotations.json"
FINETUNE = ("finetune", "vqa", "--epochs", 1, "--batch-size", 8, "--precision", "float32")


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    """A folder with data, a store and a pre-trained model, to be copied."""
    from gridvlp.train.options import PreTrainingOptions, TrainingSettings

    folder = tmp_path_factory.mktemp("trained")
    write_data(folder / "data")
    pretrain(
        PreTrainingOptions(
            features=(squares / "store.zarr",),
            data=folder / "data",
            run=folder / "runs/pretrain",
            hidden_size=32,
            layers=1,
            heads=2,
            training=TrainingSettings(1e-3, 1, 16, 0.1, precision="float32"),
        ),
        lambda line: None,
    )
    return folder


@pytest.fixture
def folder(trained, squares, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "store.zarr").symlink_to(squares / "store.zarr")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gridvlp(gridvlp):
    """Runs the command line without a traceback: (exit code, all that it printed)."""

    def run(*arguments):
        code, output, errors = gridvlp(*map(str, arguments))
        assert "Traceback" not in errors
        return code, output + errors

    return run


def change(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def set_questions(folder, texts):
    """Put texts in the place of the first questions."""

    def edit(file):
        for entry, text in zip(file["questions"], texts, strict=False):
            entry["question"] = text

    change(folder / QUESTIONS, edit)


def test_unknown_keys_are_passed_over(gridvlp, folder):
    def edit(file):
        file["extra"] = {"a": [1, {"b": None}]}
        for entry in file["questions"]:
            entry["difficulty"] = ["hard", 3]

    change(folder / QUESTIONS, edit)
    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    assert "vqa train: 64 lines, 64 used" in told


def test_empty_questions_are_counted_and_left_out(gridvlp, folder):
    set_questions(folder, ["", "  \n ", None, 7])
    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    assert "64 lines, 60 used, 4 with an empty sentence" in told


def test_a_question_of_10_000_words_is_cut_and_counted(gridvlp, folder):
    set_questions(folder, ["square " * 10_000, "is it " * 10_000])
    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    assert "Cut at 20 tokens: 2 of 64 sentences." in told


def test_any_script_is_taken(gridvlp, folder):
    texts = ["这个方块是什么颜色?", "какого цвета квадрат?", "🟥 ﷽ \u0000 \ud83d", "e\u0301\u0301"]
    set_questions(folder, texts)  # \ud83d is half a character, which JSON can hold
    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    assert "64 used" in told
    code, told = gridvlp("evaluate", "vqa", "--split", "train")
    assert code == 0, told


def test_questions_without_annotation_and_answers_that_are_no_class_are_counted(gridvlp, folder):
    def edit(file):
        del file["annotations"][:3]
        file["annotations"][0]["answers"] = []
        for answer in file["annotations"][1]["answers"]:
            answer["answer"] = "purple"

    change(folder / ANNOTATIONS, edit)
    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    assert "64 used, 4 without a label, 1 whose answer is no class" in told


def test_an_annotation_without_the_field_answers_is_named(gridvlp, folder):
    change(folder / ANNOTATIONS, lambda file: file["annotations"][5].pop("answers"))
    code, told = gridvlp(*FINETUNE)
    assert code == 2
    assert "v2_mscoco_train2014_annotations.json" in told
    assert '"answers"' in told


@pytest.mark.parametrize("other_encoder", [False, True])
def test_photos_that_the_store_lacks_are_counted_and_named(gridvlp, folder, squares, other_encoder):
    if other_encoder:  # which made none of the store's maps, and so cannot add any
        encoder = folder / "runs/extractor/encoder"
        encoder.mkdir(parents=True)
        (encoder / "encoder.json").write_text('{"weights_sha256": "another"}')
    (folder / "store.zarr").unlink()
    whole = FeatureStore(squares / "store.zarr")
    with StoreWriter.create(
        folder / "store.zarr",
        channels=CHANNELS,
        max_grids=16,
        dtype="float16",
        encoder=whole.encoder,
    ) as writer:
        for key in whole.keys()[4:]:
            writer.add(key, whole.map(key))
    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    assert "56 used, 8 without a photo in the store" in told
    assert "photos not in the store: 000000000001" in told


@pytest.mark.parametrize("command", [FINETUNE, ("pretrain", "--init", "runs/pretrain/model")])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"encoder": {"name": "other", "weights_sha256": "1" * 64}}, "maps of another recipe"),
        ({"kind": "regions"}, "trained on grids; the store holds regions"),
    ],
)
def test_a_store_that_the_model_cannot_read_is_refused(gridvlp, folder, command, changed, said):
    (folder / "store.zarr").unlink()
    if "kind" in changed:
        write_store(folder / "store.zarr", **changed)
    else:
        with StoreWriter.create(
            folder / "store.zarr", channels=CHANNELS, max_grids=16, dtype="float16", **changed
        ) as writer:
            writer.add("000000000001", np.ones((CHANNELS, 2, 2), np.float32))
    code, told = gridvlp(*command)
    assert code == 2
    assert said in told


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_cut_json_is_named(gridvlp, folder, share):
    path = folder / QUESTIONS
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    for command in (FINETUNE, ("pretrain", "--run", "other")):
        code, told = gridvlp(*command)
        assert code == 2
        assert f"{QUESTIONS} is not whole JSON" in told


def test_a_wrong_task_and_a_model_that_does_not_fit(gridvlp, folder):
    code, told = gridvlp("finetune", "vqav2")
    assert code == 2
    assert "There is no task 'vqav2'" in told
    assert "Did you mean vqa?" in told
    change(
        folder / "runs/pretrain/model/config.json",
        lambda config: config.update(num_hidden_layers=2),
    )
    code, told = gridvlp(*FINETUNE)
    assert code == 2
    assert "do not fit" in told
    assert "missing" in told
    (folder / "runs/pretrain/model/model.safetensors").write_bytes(b"no weights")
    code, told = gridvlp(*FINETUNE)
    assert code == 2
    assert "holds no model that can be loaded" in told


@pytest.mark.parametrize("name", [QUESTIONS, ANNOTATIONS])
def test_an_id_that_stands_twice_is_named_before_anything_runs(gridvlp, folder, name):
    def edit(file):
        (entries,) = (value for value in file.values() if isinstance(value, list))
        entries.append(entries[3])

    code, told = gridvlp(*FINETUNE)
    assert code == 0, told
    change(folder / name, edit)
    for command in (("evaluate", "vqa", "--split", "train"), (*FINETUNE, "--run", "other")):
        code, told = gridvlp(*command)
        assert code == 2
        assert f"{name} has" in told
        assert "twice, in entries 3 and 64" in told
