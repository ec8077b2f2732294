import hashlib
import json
import os

import pytest

from gridvlp.errors import UserError
from gridvlp.sample import world, write_sample
from gridvlp.sample.world import MARKER

SMALL = 40
PROMISED = (3, "31eb7618aada65a1")  # version of the world, and the start of its fingerprint


def contents(data):
    return {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_sample(folder, images=SMALL)
    return folder / "data"


def test_the_summary_counts_what_was_written(summary_and_data, load):
    summary, data = summary_and_data
    assert summary.written
    assert summary.counts["photos train"] == len(list((data / "coco/train2017").iterdir())) == 200
    questions = load("vqa/v2_OpenEnded_mscoco_test2015_questions.json")["questions"]
    assert summary.counts["VQA questions test"] == len(questions)
    assert summary.counts["GQA questions testdev"] == len(
        load("gqa/testdev_balanced_questions.json")
    )
    assert summary.counts["NLVR2 lines dev"] == len(load("nlvr2/dev.json"))
    assert summary.counts["VG regions"] == sum(
        len(entry["regions"]) for entry in load("vg/region_descriptions.json")
    )
    assert summary.counts["COCO instances val"] == len(
        load("coco/annotations/instances_val2017.json")["annotations"]
    )


def test_the_smallest_world_has_every_file(small):
    for name in contents(small):
        if name.startswith(("vqa/", "gqa/", "nlvr2/")) and name.endswith(".json"):
            assert (small / name).stat().st_size > 500, name


def test_the_same_numbers_give_the_same_bytes_with_any_number_of_processes(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    write_sample(tmp_path, images=SMALL)
    assert contents(tmp_path / "data") == contents(small)


def test_another_seed_gives_another_world(small, tmp_path):
    write_sample(tmp_path, images=SMALL, seed=1)
    ours, others = contents(tmp_path / "data"), contents(small)
    assert set(ours) == set(others)
    assert not {digest for name, digest in ours.items() if digest in others.values()}


def test_a_whole_world_is_left_alone_and_a_damaged_one_mended(tmp_path):
    first = write_sample(tmp_path, images=SMALL)
    data = tmp_path / "data"
    before = contents(data)
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    again = write_sample(tmp_path, images=SMALL)
    assert not again.written
    assert again.counts == first.counts
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == times

    (data / "gqa/val_balanced_questions.json").unlink()
    next((data / "coco/train2017").iterdir()).unlink()
    assert write_sample(tmp_path, images=SMALL).written
    assert contents(data) == before


def test_an_interrupted_call_is_taken_up(tmp_path, monkeypatch, small):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world, "write_gqa", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path, images=SMALL)
    assert not (tmp_path / "data/gqa/train_balanced_questions.json").exists()
    (tmp_path / "data/coco/train2017/.000000100001.jpg.tmp").write_bytes(b"half a photo")
    assert write_sample(tmp_path, images=SMALL).written
    assert contents(tmp_path / "data") == contents(small)  # the half photo's name is used again


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch, small):
    def refused(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    write_sample(tmp_path, images=SMALL)
    assert contents(tmp_path / "data") == contents(small)


def test_other_data_are_never_touched(tmp_path):
    photo = tmp_path / "data/coco/train2017/000000000009.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"precious")
    with pytest.raises(UserError, match="no sample world"):
        write_sample(tmp_path, images=SMALL)
    assert contents(tmp_path / "data") == {
        "coco/train2017/000000000009.jpg": hashlib.sha256(b"precious").hexdigest()
    }


def test_another_sample_world_is_not_mixed_with_this_one(small):
    before = contents(small)
    with pytest.raises(UserError, match=r"--images 40 --seed 0.* not --images 41 --seed 0"):
        write_sample(small.parent, images=SMALL + 1)
    with pytest.raises(UserError, match="not --images 40 --seed 9"):
        write_sample(small.parent, images=SMALL, seed=9)
    assert contents(small) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"world"', "\xff"])
def test_a_damaged_marker_is_named(tmp_path, text):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / MARKER).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=MARKER):
        write_sample(tmp_path, images=SMALL)


@pytest.mark.parametrize(
    ("images", "seed", "named"),
    [(0, 0, "--images 0"), (39, 0, "--images 39"), (40, -1, "--seed -1")],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, images, seed, named):
    with pytest.raises(UserError, match=named):
        write_sample(tmp_path, images=images, seed=seed)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="file"):
        write_sample(tmp_path / "file", images=SMALL)


def test_the_marker_says_that_the_world_is_generated(small):
    marker = json.loads((small / MARKER).read_text())
    assert "no real photo" in marker["what"]


def test_what_a_seed_gives_is_a_promise(small):
    """A world that is there is kept as long as its version is ours: so a new world is a new one.

    Texts and answers only; photos and boxes depend on Pillow and on rounding, too.
    """
    digest = hashlib.sha256()
    for split in ("train2014", "val2014", "test2015"):
        path = small / f"vqa/v2_OpenEnded_mscoco_{split}_questions.json"
        digest.update(json.dumps(json.loads(path.read_text())["questions"]).encode())
    for split in ("train", "dev", "test1"):
        digest.update((small / f"nlvr2/{split}.json").read_bytes())
    assert (world.VERSION, digest.hexdigest()[:16]) == PROMISED, (
        "The world has changed: raise gridvlp.sample.world.VERSION and note the new value here."
    )
