import json
import shutil
import tarfile
import warnings
from pathlib import Path

import pytest

from gridvlp import cli
from gridvlp.store import FeatureStore

TINY = (
    *("--hidden-size", "32", "--layers", "1", "--heads", "2", "--grids", "4"),
    *("--epochs", "1", "--batch-size", "16", "--precision", "float32"),
)


@pytest.fixture
def folder(squares, tmp_path, monkeypatch):
    """A working folder as a user has it, with data/ and store.zarr."""
    (tmp_path / "data").symlink_to(squares / "data")
    (tmp_path / "store.zarr").symlink_to(squares / "store.zarr")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_option_of_every_command_is_explained_with_its_default(gridvlp):
    for name, command in cli.cli.commands.items():
        code, text, _ = gridvlp(name, "--help")
        assert code == 0
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help, f"{name} {option.name}"
                assert option.opts[0] in text
                is_flag = getattr(option, "is_flag", False)
                assert option.required or is_flag or "default" in text


def test_the_commands_run_one_after_another_with_their_defaults(gridvlp, folder):
    code, out, err = gridvlp("pretrain", "--features", "store.zarr", *TINY)
    assert code == 0, err
    assert "pretrain: features=store.zarr data=data run=runs/pretrain" in err
    assert "coco-captions" in out
    code, out, err = gridvlp("finetune", "nlvr2", "--epochs", 1, "--batch-size", 8)
    assert code == 0, err
    assert "nlvr2 train: 32 lines, 32 used" in out
    code, out, err = gridvlp("evaluate", "nlvr2", "--split", "dev", "--withheld")
    assert code == 0, err
    assert "accuracy" in out
    assert "image withheld" in out
    metrics = json.loads((folder / "runs/finetune-nlvr2/evaluate-dev/metrics.json").read_text())
    assert metrics["examples"] == 16
    assert (folder / "runs/finetune-nlvr2/evaluate-dev/predictions.csv").exists()
    assert "Report: runs/finetune-nlvr2/report.html" in out
    code, out, err = gridvlp("report", "runs/pretrain", "runs/finetune-nlvr2")
    assert code == 0, err
    assert "fine-tuning on nlvr2" in (folder / "report.html").read_text()
    code, _, err = gridvlp("report", "runs")
    assert code == 2
    assert "there are runs in it: finetune-nlvr2, pretrain" in err


def test_a_settings_file_gives_defaults_and_options_win(gridvlp, folder):
    (folder / "gridvlp.yaml").write_text(
        "pretrain: {layers: 7, heads: 5}\nfinetune nlvr2: {epochs: 9}\n"
    )
    _, _, err = gridvlp("pretrain", "--heads", 2, "--features", "nowhere.zarr")
    assert "layers=7 heads=2" in err
    _, _, err = gridvlp("finetune", "nlvr2", "--features", "nowhere.zarr")
    assert "epochs=9" in err
    _, _, err = gridvlp("finetune", "vqa", "--features", "nowhere.zarr")
    assert "epochs=9" not in err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pretrain: {layer: 7}", "no option 'layer'. Did you mean layers?"),
        ("pretrian: {layers: 7}", "'pretrian' is no command. Did you mean pretrain?"),
        ("- layers", "must have a section for each command"),
        ("pretrain: 7", "must hold `option: value` lines"),
        ("{", "cannot be read as YAML"),
        ("pretrain: {learning-rate: fast}", "pretrain: Invalid value for '--learning-rate'"),
        ("pretrain: {precision: flaot32}", "'flaot32' is not one of"),
        # of other commands, too
        ("finetune vqa: {epochs: few}", "finetune vqa: Invalid value for '--epochs'"),
        ("evaluate: {splitt: val}", "evaluate has no option 'splitt'. Did you mean split?"),
    ],
)
def test_a_settings_file_with_a_mistake_is_told(gridvlp, folder, text, told):
    (folder / "mine.yaml").write_text(text)
    code, _, err = gridvlp("pretrain", "--config", "mine.yaml")
    assert code == 2
    assert told in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pretrian"], "Did you mean pretrain?"),
        (["finetune", "nlvr"], "Did you mean nlvr2?"),
        (["evaluate", "vqaa"], "Did you mean vqa?"),
        (["pretrain", "--features", "none.zarr"], "`gridvlp extract --images coco/`"),
        (["pretrain", "--features", "data"], "no feature store"),
        (["pretrain", "--grids", "some"], "give a number, or 'all'"),
        (["pretrain", "--epochs", "0"], "--epochs must be above 0"),
        (["pretrain", "--data", "elsewhere"], "elsewhere"),
        (["finetune", "vqa"], "`gridvlp pretrain`"),
        (["evaluate", "gqa"], "`gridvlp finetune gqa`"),
        (["evaluate", "gqa", "--batch-size", "0"], "--batch-size must be above 0"),
        (["pretrain", "--config", "none.yaml"], "cannot be read"),
        (["extract", "--images", "nowhere/"], "There is no folder nowhere"),
        (["train-extractor", "--visual-genome", "nowhere"], "nowhere"),
        (["sample-data", ".", "--images", "3"], "give a number from"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(gridvlp, folder, arguments, told):
    code, _, err = gridvlp(*arguments)
    assert code == 2
    assert told in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("Error")]) == 1


def test_half_an_annotation_file_is_named(gridvlp, folder, squares):
    (folder / "data").unlink()
    path = folder / "data/coco/annotations/captions_train2017.json"
    path.parent.mkdir(parents=True)
    whole = (squares / "data/coco/annotations/captions_train2017.json").read_text()
    path.write_text(whole[: len(whole) // 2])
    code, _, err = gridvlp("pretrain")
    assert code == 2
    assert "captions_train2017.json" in err


def test_a_store_is_verified_inspected_and_drawn(gridvlp, folder, squares):
    code, out, _ = gridvlp("verify")
    assert code == 0
    assert "maps in store.zarr are whole" in out
    code, out, _ = gridvlp("inspect", "store.zarr")
    assert code == 0
    assert "H x W" in out
    key = FeatureStore(squares / "store.zarr").keys()[0]
    code, out, _ = gridvlp("inspect", "--image", key)
    assert code == 0
    assert (folder / f"{key}.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = gridvlp("inspect", "--image", "nobody")
    assert code == 2
    assert "no map of nobody" in err


def test_verify_names_the_damaged_map_and_fails(gridvlp, squares, tmp_path, monkeypatch):
    shutil.copytree(squares / "store.zarr", tmp_path / "store.zarr")
    monkeypatch.chdir(tmp_path)
    shard = tmp_path / "store.zarr/grids/c/0/0"
    changed = bytearray(shard.read_bytes())
    changed[20] ^= 255
    shard.write_bytes(changed)
    code, out, err = gridvlp("verify")
    assert code == 2
    assert FeatureStore("store.zarr").keys()[0] in out
    assert "1 of" in err


@pytest.fixture
def trained(gridvlp, folder):
    """The working folder with a fine-tuned run of VQA and of NLVR2."""
    gridvlp("pretrain", *TINY)
    for task in ("vqa", "nlvr2"):
        code, _, err = gridvlp("finetune", task, "--epochs", 1, "--batch-size", 8)
        assert code == 0, err
    return folder


def test_predict_answers_a_question_about_photos_of_the_store(gridvlp, trained):
    keys = FeatureStore("store.zarr").keys()
    code, out, err = gridvlp(
        *("predict", "vqa", "--key", keys[0], "--question", "what color is it?"),
        *("--top", 2, "--picture", "looked.png"),
    )
    assert code == 0, err
    shares = [float(line.split("%")[0]) for line in out.splitlines() if "%" in line]
    assert len(shares) == 2
    assert shares == sorted(shares, reverse=True)
    assert (trained / "looked.png").read_bytes().startswith(b"\x89PNG")
    both = ("--key", keys[0], "--key", keys[1])
    code, out, _ = gridvlp("predict", "nlvr2", *both, "--question", "both are red")
    assert code == 0
    assert "true" in out.lower()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["vqa"], "either --image or --key"),
        (["vqa", "--key", "a", "--image", "b.jpg"], "either --image or --key"),
        (["vqa", "--key", "nobody"], "no map of nobody"),
        (["nlvr2", "--key", "nobody"], "nlvr2 takes 2 images"),
        (["gqa", "--key", "nobody"], "`gridvlp finetune gqa`"),
        (["vqa", "--image", "none.jpg"], "none.jpg"),
        (["vqqa", "--key", "nobody"], "Did you mean vqa?"),
    ],
)
def test_predict_refuses_in_one_sentence(gridvlp, trained, arguments, told):
    code, _, err = gridvlp("predict", *arguments, "--question", "what is it?")
    assert code == 2
    assert told in err
    code, _, err = gridvlp("predict", "vqa", "--key", "nobody", "--question", " ")
    assert code == 2


@pytest.fixture
def photos_and_encoder(folder, squares):
    """Photos of the squares' first lines, and a tiny encoder where a run of one leaves it."""
    pytest.importorskip("detectron2")
    from PIL import Image

    from gridvlp.extract.encoder import read_weights, save_encoder

    for path in (folder / "data", folder / "store.zarr"):
        path.unlink()
    shutil.copytree(squares / "data", folder / "data")
    photos = folder / "data/coco/train2014"
    photos.mkdir()
    for i in range(1, 5):
        Image.new("RGB", (64, 48), (60 * i, 0, 0)).save(photos / f"COCO_train2014_{i:012}.png")
    (photos / "COCO_train2014_000000000004.json").write_text("{}")
    encoder = folder / "runs/extractor/encoder"
    encoder.mkdir(parents=True)
    weights = read_weights("random", "r50", 0.125)
    save_encoder(encoder, "tiny", weights.architecture, weights.state, "64x64", {})
    return photos


def test_the_default_store_gets_the_photos_that_it_lacks(gridvlp, folder, photos_and_encoder):
    one = photos_and_encoder / "COCO_train2014_000000000001.png"
    gridvlp("extract", "--images", one)
    (folder / "gridvlp.yaml").write_text("finetune: {features: maps.zarr}")
    shutil.copytree(folder / "store.zarr", folder / "maps.zarr")
    assert gridvlp("finetune", "vqa")[0] == 2  # there is no model
    for name in ("maps.zarr", "store.zarr"):
        assert len(FeatureStore(folder / name)) == 1
    (folder / "gridvlp.yaml").unlink()
    code, out, _ = gridvlp("finetune", "vqa")
    assert "extracting the 3" in out
    assert len(FeatureStore(folder / "store.zarr")) == 4
    (folder / "runs/extractor/encoder/encoder.json").write_text("{")
    code, _, err = gridvlp("finetune", "vqa")
    assert code == 2
    assert "no pre-trained model" in err


def test_an_evaluation_adds_nothing_to_a_store_that_its_run_does_not_read(
    gridvlp, folder, photos_and_encoder
):
    gridvlp("extract", "--images", photos_and_encoder / "COCO_train2014_000000000001.png")
    run = folder / "runs/finetune-vqa"
    run.mkdir()
    for features, count in (("maps.zarr", 1), ("store.zarr", 4)):
        options = {"task": "vqa", "features": [features], "data": "data"}
        (run / "run.json").write_text(json.dumps({"options": options}))
        assert gridvlp("evaluate", "vqa", "--split", "train")[0] == 2  # there is no model
        assert len(FeatureStore(folder / "store.zarr")) == count


def test_one_photo_may_be_both_of_a_statement(monkeypatch, folder, photos_and_encoder):
    from gridvlp.cli import _extract_photos

    one, two = sorted(photos_and_encoder.glob("*.png"))[:2]
    for images in ((one, one), (two, one)):
        keys = _extract_photos(
            images, folder / "no run", folder / f"{images[0].stem}.zarr", "runs/extractor", None
        )
        assert keys == tuple(image.stem for image in images)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "vqa", "--question", "?", "--key", "1", "--top", "0"),
        ("audit", "store.zarr", "--images", "data", "--maps", "-1"),
        ("convert", "data", "--encoder", "x", "--max-grids", "0"),
        ("convert", "data", "--encoder", "x", "--skip-limit", "-1"),
        ("verify", "store.zarr", "--threads", "0"),
    ],
)
def test_a_number_out_of_range_is_refused(gridvlp, folder, arguments):
    code, _, err = gridvlp(*arguments)
    assert code == 2
    assert f"Invalid value for '{arguments[-2]}'" in err


def test_a_warning_is_one_line_without_code(gridvlp, folder, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command's own
    with tarfile.open(Path(__file__).parent / "store/format_4.tar.xz") as files:
        files.extractall(folder, filter="data")
    with pytest.warns(UserWarning, match="store format 4") as warned:
        code, _, _ = gridvlp("verify", "grids.zarr")
    assert code == 0
    text = warnings.formatwarning(warned[0].message, UserWarning, "cli.py", 1, "code")
    assert text.startswith("Warning: grids.zarr has store format 4")
    assert text.count("\n") == 1
