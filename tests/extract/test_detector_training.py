"""The detector learns, resumes to the same weights after a kill, and says when it diverges."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from gridvlp.errors import UserError
from gridvlp.extract.annotations import Annotations, Counts
from gridvlp.extract.backbone import new_architecture
from gridvlp.extract.batches import Batches, load
from gridvlp.extract.detector import AttributePredictor
from gridvlp.extract.detector_training import train_extractor
from gridvlp.extract.encoder import FrozenEncoder, read_weights, save_encoder
from gridvlp.extract.options import TrainExtractorOptions
from gridvlp.extract.visual_genome import read_visual_genome
from gridvlp.extract.vocabulary import Vocabulary


def options(visual_genome: Path, run: Path, **changes: Any) -> TrainExtractorOptions:
    base = TrainExtractorOptions(
        visual_genome,
        run=run,
        width=0.125,
        size="64x96",
        iterations=4,
        batch_size=4,
        learning_rate=0.002,
        warmup=2,
        rpn_batch=16,
        roi_batch=16,
        proposals=20,
        valid=0.2,
        save_steps=1,
        precision="float32",
    )
    return replace(base, **changes)


def quiet(_: str) -> None:
    """Takes the place of print."""


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / "encoder.safetensors")


def test_run_leaves_an_encoder(visual_genome: Path, tmp_path: Path) -> None:
    said: list[str] = []
    figures = train_extractor(options(visual_genome, tmp_path / "run"), said.append)
    assert 0 <= figures["class accuracy"] <= 100
    assert 0 <= figures["attribute accuracy"] <= 100
    assert 0 <= figures["AP"] <= figures["AP50"] <= 100
    assert "48 boxes" in said[0]
    weights = read_weights(str(tmp_path / "run"))
    assert weights.size == "64x96"
    assert weights.architecture == new_architecture("x50", 0.125)
    FrozenEncoder(weights, "float32")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert logged[-1]["step"] == 4
    names = {name for line in logged for name in line}
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "loss_attributes"} <= names
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    again = train_extractor(options(visual_genome, tmp_path / "run"), said.append)
    assert again == figures
    assert "finished already" in said[-1]


def test_resumed_run_equals_an_undisturbed_one(
    visual_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_extractor(options(visual_genome, tmp_path / "whole"), quiet)
    made = Batches.__call__

    def stop(self: Batches, step: int) -> Any:
        if step == 2:
            raise RuntimeError("pulled the plug")
        return made(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", stop)
        with pytest.raises(RuntimeError, match="plug"):
            train_extractor(options(visual_genome, tmp_path / "cut"), quiet)
    with pytest.raises(UserError, match="not finished"):
        read_weights(str(tmp_path / "cut"))
    train_extractor(options(visual_genome, tmp_path / "cut", threads=1), quiet)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_ctrl_c_within_a_step_changes_nothing(
    visual_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held back until the step is done: no half step is saved, nor photos counted twice."""
    train_extractor(options(visual_genome, tmp_path / "whole"), quiet)
    losses = AttributePredictor.loss
    calls = []

    def interrupt(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AttributePredictor, "loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_extractor(options(visual_genome, tmp_path / "cut", save_steps=1000), quiet)
    state = json.loads((tmp_path / "cut" / "checkpoint" / "state.json").read_text())
    assert state["step"] == 3
    train_extractor(options(visual_genome, tmp_path / "cut"), quiet)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


KILLED = """
import sys
from pathlib import Path
import torch
torch.cuda.is_available = lambda: False
torch.set_num_threads(1)
from gridvlp.extract.options import TrainExtractorOptions
from gridvlp.extract.detector_training import train_extractor
train_extractor(TrainExtractorOptions(Path(sys.argv[1]), run=Path(sys.argv[2]), width=0.125,
    size="64x96", iterations=12, batch_size=4, learning_rate=0.002, warmup=2, rpn_batch=16,
    roi_batch=16, proposals=20, valid=0.2, save_steps=1, precision="float32"))
"""


@pytest.mark.slow
def test_killed_run_goes_on(visual_genome: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(visual_genome), str(run)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        if (run / "checkpoint" / "state.json").is_file():
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    train_extractor(options(visual_genome, run, iterations=12), quiet)
    train_extractor(options(visual_genome, tmp_path / "whole", iterations=12), quiet)
    whole, killed = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_other_options_are_refused(visual_genome: Path, tmp_path: Path) -> None:
    train_extractor(options(visual_genome, tmp_path / "run", iterations=1), quiet)
    with pytest.raises(UserError, match="learning_rate"):
        train_extractor(options(visual_genome, tmp_path / "run", learning_rate=0.1), quiet)


def test_changed_annotations_are_refused_and_moved_ones_are_not(
    tmp_path: Path,
    write_visual_genome: Callable[..., dict[str, Any]],
    save_release: Callable[..., None],
) -> None:
    """Of the same photos, with as many boxes, of the same names."""
    release = write_visual_genome(tmp_path / "vg")
    plain = (tmp_path / "vg" / "objects.json").read_text()
    chosen = options(tmp_path / "vg", tmp_path / "run", iterations=1)
    figures = train_extractor(chosen, quiet)
    for entry in release["objects"]:
        names = [thing["names"] for thing in entry["objects"]]
        for thing, name in zip(entry["objects"], reversed(names), strict=True):
            thing["names"] = name
            thing["x"] += 1
    save_release(tmp_path / "vg", release)
    with pytest.raises(UserError, match=r"data have changed .*annotations"):
        train_extractor(chosen, quiet)
    (tmp_path / "vg" / "objects.json").write_text(plain)
    assert train_extractor(chosen, quiet) == figures


def test_given_weights_are_known_by_their_content(visual_genome: Path, tmp_path: Path) -> None:
    for seed in range(2):
        given = read_weights("random", "x50", 0.125)
        state = {key: value + seed for key, value in given.state.items()}
        (tmp_path / f"given{seed}").mkdir()
        save_encoder(tmp_path / f"given{seed}", "r", given.architecture, state, "64x96", {})
    chosen = options(visual_genome, tmp_path / "run", iterations=1, weights=tmp_path / "given0")
    figures = train_extractor(chosen, quiet)
    (tmp_path / "given0").rename(tmp_path / "moved")
    assert train_extractor(replace(chosen, weights=tmp_path / "moved"), quiet) == figures
    (tmp_path / "given1").rename(tmp_path / "given0")
    with pytest.raises(UserError, match=r"begun with other options \(weights was"):
        train_extractor(chosen, quiet)


def test_divergence_names_the_loss(visual_genome: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss_\w+.* step \d+.*--learning-rate"):
        train_extractor(
            options(visual_genome, tmp_path / "run", learning_rate=1e18, iterations=20), quiet
        )
    assert not (tmp_path / "run" / "encoder").exists()


@pytest.mark.slow
def test_it_learns(visual_genome: Path, tmp_path: Path) -> None:
    """Two shapes and three colours on photos that it has not seen."""
    figures = train_extractor(
        options(
            visual_genome,
            tmp_path / "run",
            iterations=100,
            batch_size=8,
            rpn_boundary=-1,
            optimizer="adamw",
            learning_rate=0.003,
            warmup=5,
            save_steps=1000,
        ),
        quiet,
    )
    assert figures["attribute accuracy"] > 80  # "plain" alone gives 50, a guessed colour 67
    assert figures["class accuracy"] > 60
    assert figures["AP50"] > 15


def test_starts_from_given_weights(visual_genome: Path, tmp_path: Path) -> None:
    """Norms and the first two stages stay as they were, the rest moves (Detectron2's FREEZE_AT)."""
    given = read_weights("random", "x50", 0.125)
    folder = tmp_path / "given"
    folder.mkdir()
    save_encoder(folder, "given", given.architecture, given.state, "64x96", {})
    train_extractor(options(visual_genome, tmp_path / "run", weights=folder, iterations=2), quiet)
    after = weights_of(tmp_path / "run")
    for key, value in given.state.items():
        frozen = "norm" in key or key.startswith(("stem", "res2"))
        assert torch.equal(after[key], value) == frozen, key


def test_photos_are_fed_in_the_backbones_channel_order(visual_genome: Path) -> None:
    photo = read_visual_genome(visual_genome)[0]
    bgr, rgb = (load(photo, (64, 96), channel_order=order)["image"] for order in ("BGR", "RGB"))
    assert torch.equal(bgr, rgb.flip(0))
    assert not torch.equal(bgr, rgb)


def test_boxes_follow_the_pixels(visual_genome: Path) -> None:
    """What is inside a box is the same before and after mirroring."""
    for photo in [*read_visual_genome(visual_genome)][:6]:
        plain, mirrored = (load(photo, (96, 200), mirrored=m) for m in (False, True))
        assert torch.equal(plain["image"].flip(-1), mirrored["image"])
        for one, other in zip(
            plain["instances"].gt_boxes.tensor, mirrored["instances"].gt_boxes.tensor, strict=True
        ):
            width = plain["image"].shape[2]
            assert torch.allclose(
                other, torch.stack([width - one[2], one[1], width - one[0], one[3]])
            )
        small = load(photo, (48, 100))
        ratio = small["image"].shape[1] / plain["image"].shape[1]
        assert torch.allclose(
            small["instances"].gt_boxes.tensor,
            plain["instances"].gt_boxes.tensor * ratio,
            rtol=1e-3,
        )


def _photos(tall: int, wide: int) -> Annotations:
    arrays = {"sizes_P2": np.array([(10, 20)] * tall + [(20, 10)] * wide)}
    rows = np.arange(tall + wide)
    return Annotations(arrays, Vocabulary([], []), Counts(), [""] * len(rows), rows, "")


def test_epochs_see_every_photo_and_batches_one_shape() -> None:
    plan = Batches(_photos(9, 14), options(Path(), Path(), batch_size=4))
    for epoch in range(3):
        rows = plan.plan(epoch)
        assert set(rows.ravel().tolist()) == set(range(23))
        assert all((row < 9).all() or (row >= 9).all() for row in rows)
    assert not np.array_equal(plan.plan(0), plan.plan(1))
    assert np.array_equal(
        plan.plan(1), Batches(_photos(9, 14), options(Path(), Path(), batch_size=4)).plan(1)
    )
    other = Batches(_photos(9, 14), options(Path(), Path(), batch_size=4, seed=1))
    assert not np.array_equal(plan.plan(1), other.plan(1))


def test_attribute_loss_is_the_mean_over_a_boxs_attributes_then_over_boxes() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    told = [[1, 3, 5], [], [2], [0, 6]]
    rows = torch.full((4, 16), -1)
    for row, given in zip(rows, told, strict=True):
        row[: len(given)] = torch.tensor(given)
    expected = torch.stack(
        [
            torch.stack([functional.cross_entropy(logit, torch.tensor(a)) for a in given]).mean()
            for logit, given in zip(logits, told, strict=True)
            if given
        ]
    ).mean()
    predictor = AttributePredictor(8, 3, 7)
    assert torch.allclose(predictor.loss(logits, rows), expected)
    assert predictor.loss(logits, torch.full((4, 16), -1)) == 0


def test_bad_photos_are_replaced_and_listed(
    tmp_path: Path, write_visual_genome: Callable[..., dict[str, Any]]
) -> None:
    """One bad photo must not end a run of days; which they are is written down."""
    write_visual_genome(tmp_path / "vg", photos=24)
    paths = sorted((tmp_path / "vg").rglob("*.jpg"), key=lambda path: path.name)
    paths[0].write_bytes(b"")  # held out
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    Image.open(paths[2]).resize((90, 50)).save(paths[2])  # another photo than was annotated
    paths[4].unlink()
    data = read_visual_genome(tmp_path / "vg")
    assert data.counts.without_file == 1
    paths[5].unlink()  # after training has begun
    batches = Batches(data, options(tmp_path / "vg", Path(), batch_size=4))
    seen = [len(batches(step)) for step in range(2 * batches.per_epoch)]
    assert set(seen) == {4}
    assert {Path(path).name for path in batches.bad} == {
        *("1000.jpg", "1001.jpg", "1002.jpg", "1005.jpg")
    }
    again = Batches(data, options(tmp_path / "vg", Path(), batch_size=4))
    for step in (3, 0):  # what a batch holds depends on its number alone
        for one, other in zip(batches(step), again(step), strict=True):
            assert torch.equal(one["image"], other["image"])
    paths[5].write_bytes(b"here again")
    said: list[str] = []
    train_extractor(options(tmp_path / "vg", tmp_path / "run", iterations=8), said.append)
    listed = (tmp_path / "run" / "bad-photos.txt").read_text().splitlines()
    reasons = {Path(name).name: reason for name, reason in (line.split(": ", 1) for line in listed)}
    assert reasons.keys() == {"1000.jpg", "1001.jpg", "1002.jpg", "1005.jpg"}
    assert "0 bytes" in reasons["1000.jpg"]
    assert "90 x 50 pixels" in reasons["1002.jpg"]
    assert any("4 photos cannot be used" in line for line in said)


def test_without_any_readable_photo_training_stops(
    tmp_path: Path, write_visual_genome: Callable[..., dict[str, Any]]
) -> None:
    write_visual_genome(tmp_path / "vg", photos=6)
    for path in (tmp_path / "vg").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"10\d\d\.jpg and the photos after it cannot be read"):
        train_extractor(options(tmp_path / "vg", tmp_path / "run"), quiet)


def test_other_weights_than_the_backbone_asked_for_are_refused(
    visual_genome: Path, tmp_path: Path
) -> None:
    given = read_weights("random", "r50", 0.125)
    (tmp_path / "given").mkdir()
    save_encoder(tmp_path / "given", "r", given.architecture, given.state, "64x96", {})
    with pytest.raises(UserError, match=r"holds an r50 .* --backbone r50 --width 0\.125"):
        train_extractor(options(visual_genome, tmp_path / "run", weights=tmp_path / "given"), quiet)


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid": 0.0},
        {"valid": 1.0},
        {"optimizer": "sgdm"},
        {"res5_dilation": 3},
        {"warmup": -1},
        {"num_gpus": 3},
        {"num_machines": 2},
        {"machine_rank": 1},
        {"rpn_boundary": -2},
        {"annotations": (Path("a.json"),)},
        {"photos": (Path("photos"),)},
    ],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        options(Path("vg"), Path("run"), **wrong)


def test_what_to_train_on_must_be_said() -> None:
    with pytest.raises(UserError, match="--visual-genome FOLDER or --annotations FILE"):
        TrainExtractorOptions()
