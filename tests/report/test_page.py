import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from gridvlp.errors import UserError
from gridvlp.report.charts import Line, chart, ticks
from gridvlp.report.page import write_report
from gridvlp.store import StoreWriter
from gridvlp.train.evaluation import evaluate
from gridvlp.train.finetuning import finetune
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain
from tests.squares import CHANNELS, COLOURS

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"


class Page(HTMLParser):
    """The elements of a page, its text, and every address that it would load or link to."""

    VOID = frozenset({"meta", "img", "br", "input", "line", "circle", "polyline"})

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], "", []
        self.feed(path.read_text())
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        for name, value in attributes:
            assert not name.startswith("on"), f"a handler: {name}"
            if name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
                self.addresses.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag, kind=None):
        return sum(
            name == tag and (kind is None or kind in (attributes.get("class") or "").split())
            for name, attributes in self.tags
        )


def silent(_line):
    pass


@pytest.fixture(scope="module")
def world(squares, tmp_path_factory):
    """A fine-tuned and evaluated run on squares whose photos exist."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    with StoreWriter.create(
        folder / "store.zarr", channels=CHANNELS, max_grids=16, dtype="float16", encoder={}
    ) as writer:
        for image in range(1, 49):
            map_CHW = rng.random((CHANNELS, 3, 4)).astype(np.float32) * 0.2
            map_CHW[image % 2, 1, 2] += 1
            photo = folder / f"{image:012}.jpg"
            Image.new("RGB", (60, 45), COLOURS[image % 2]).save(photo)
            writer.add(photo.stem, map_CHW, source=str(photo))
    return folder


@pytest.fixture(scope="module")
def run(world, squares, tmp_path_factory):
    from dataclasses import replace

    from gridvlp.train.options import FINE_TUNING, PreTrainingOptions

    training = replace(
        FINE_TUNING["vqa"], learning_rate=2e-3, epochs=2, batch_size=16, precision="float32"
    )
    common = {"features": (world / "store.zarr",), "data": squares / "data"}
    sizes = {"hidden_size": 32, "layers": 1, "heads": 2}
    pretrain(
        PreTrainingOptions(**common, run=world / "pretrain", **sizes, grids=4, training=training),
        silent,
    )
    options = FineTuningOptions(
        "vqa", training=training, init=world / "pretrain", run=world / "finetune-vqa", **common
    )
    finetune(options, silent)
    evaluate("vqa", "val", run=options.run, say=silent, withheld=True)
    return options.run


def write_examples(run, labelled=True, sentence="What color is the square?"):
    lines = [
        {
            "id": str(n),
            "sentence": sentence,
            "images": [f"{33 + n % 16:012}"],
            "kind": "what" if n % 3 else "how<b>many",
            "labels": {"red": 1.0, "blue": 0.3} if labelled else {},
            "predicted": "red" if n % 2 else "blue",
            "top": [["red", 0.75], [sentence + "\ud800", 0.2]],
            "score": (1.0 if n % 2 else 0.3) if labelled else None,
        }
        for n in range(80)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "evaluate-val/examples.jsonl").write_text(text)


@pytest.fixture
def copy(run, tmp_path):
    """A run that a test may change, with examples."""
    shutil.copytree(run, tmp_path / "finetune-vqa")
    write_examples(tmp_path / "finetune-vqa")
    return tmp_path / "finetune-vqa"


def test_a_page_stands_alone_and_shows_what_the_run_holds(copy):
    path = write_report([copy], say=silent)
    assert path == copy / "report.html"
    page = Page(path)
    assert page.addresses
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert not re.search(r"https?:|@import|url\(|<script|<link|<iframe", path.read_text())
    policy = next(a for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )
    assert page.count("article", "card") == 24
    assert page.count("img", "heat") == 24
    assert page.count("img") == 48
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    assert page.count("polyline") >= 3  # loss, learning rate, accuracy
    metrics = json.loads((copy / "evaluate-val/metrics.json").read_text())
    for shown in (
        f"{metrics['figures']['accuracy']:.2f}",
        f"{metrics['withheld']['accuracy']:.2f}",
        "learning_rate",
        "examples",
        "how<b>many: what was answered",
    ):
        assert shown in page.text
    assert {"table", "thead", "th", "caption", "details"} <= {tag for tag, _ in page.tags}


def test_what_evaluate_wrote_is_shown(run):
    page = Page(write_report([run], say=silent))
    lines = (run / "evaluate-val/examples.jsonl").read_text().splitlines()
    right = sum(json.loads(line)["score"] >= 0.5 for line in lines)
    assert page.count("article", "card") == min(12, right) + min(12, len(lines) - right)
    assert "vqa train: 64 lines, 64 used" in page.text


def test_text_of_annotations_cannot_become_markup(copy):
    write_examples(copy, sentence=HOSTILE)
    page = Page(write_report([copy], say=silent))  # a handler or an open element would fail here
    assert not page.count("script")
    assert "alert(1)" in page.text
    assert all(a.startswith("data:image/") for a in page.addresses)


def test_confusions_count_every_example_once(copy):
    page = write_report([copy], say=silent).read_text()
    table = re.search(r"what: what was answered.*?</table>", page, re.DOTALL)[0]
    cells = [int(n) for n in re.findall(r"<td[^>]*>(\d+)</td>", table)]
    assert sum(cells) == sum(n % 3 > 0 for n in range(80))
    assert "red → blue" in page


def test_each_of_several_right_answers_is_right(copy):
    path = copy / "evaluate-val/examples.jsonl"
    example = json.loads(path.read_text().splitlines()[1])
    sofa = {"labels": {"couch": 1.0, "sofa": 1.0}, "predicted": "sofa", "score": 1.0}
    path.write_text(json.dumps(example | sofa) + "\n")
    page = write_report([copy], say=silent).read_text()
    assert "couch → sofa" not in page
    table = re.search(r"what: what was answered.*?</table>", page, re.DOTALL)[0]
    assert "sofa" in table
    assert "couch" not in table


def test_without_photos_maps_labels_or_examples_the_page_says_so(copy, tmp_path, world):
    told = []
    write_examples(copy, labelled=False)
    page = Page(write_report([copy], say=told.append))
    assert "Without a label" in page.text
    assert page.count("article", "card") == 12

    metrics = json.loads((copy / "evaluate-val/metrics.json").read_text())
    for changes, wanted in (
        ({"figures": None, "withheld": None, "majority": None}, "no labels: no score"),
        ({"stores": [str(tmp_path / "gone.zarr")]}, "no photos and no heat maps"),
    ):
        (copy / "evaluate-val/metrics.json").write_text(json.dumps(metrics | changes))
        assert wanted in Page(write_report([copy], say=told.append)).text

    moved = tmp_path / "moved"
    shutil.copytree(world / "store.zarr", moved / "store.zarr")
    with StoreWriter.create(
        moved / "sourceless.zarr", channels=CHANNELS, max_grids=16, dtype="float16", encoder={}
    ) as writer:
        for image in range(33, 49):
            writer.add(f"{image:012}", np.ones((CHANNELS, 2, 2), np.float32))
    stores = {"stores": [str(moved / "sourceless.zarr")]}
    (copy / "evaluate-val/metrics.json").write_text(json.dumps(metrics | stores))
    page = Page(write_report([copy], say=told.append))
    assert page.count("img") == page.count("img", "heat") == 12
    assert any("photos are not where they were" in line for line in told)

    (copy / "evaluate-val/examples.jsonl").unlink()
    assert "`gridvlp evaluate vqa --split val` writes it" in Page(write_report([copy])).text


def test_several_runs_are_compared(copy, world, tmp_path):
    other = shutil.copytree(copy, tmp_path / "another")
    runs = [world / "pretrain", copy, other]
    page = Page(write_report(runs, tmp_path / "all.html", silent))
    assert "fine-tuning on vqa: accuracy" in page.text
    assert "pre-training: loss" not in page.text  # there is one only
    assert "held_out/mlm" in page.text
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links == {"run1", "run2", "run3"} <= {a.get("id") for _, a in page.tags}


def test_an_unfinished_run_without_curves_has_a_page(copy):
    for name in ("metrics.jsonl", "result.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "evaluate-val")
    text = Page(write_report([copy], say=silent)).text
    assert "not finished" in text
    assert "No curves" in text


def test_what_cannot_be_reported_is_told_in_a_sentence(copy, tmp_path):
    with pytest.raises(UserError, match=r"no run\.json; there are runs in it: finetune-vqa"):
        write_report([tmp_path])
    with pytest.raises(UserError, match=r"nowhere is no run folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="Name a run folder"):
        write_report([])
    with pytest.raises(UserError, match="cannot be written"):
        write_report([copy], tmp_path / "nowhere" / "page.html")
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'5\n[1]\n{"step": "x", "loss": 1}\n\xff\n')  # left out
    write_report([copy], say=silent)
    good = json.loads((copy / "evaluate-val/examples.jsonl").read_text().splitlines()[0])
    for change in (
        *({"labels": ["red"]}, {"labels": {"red": "much"}}, {"top": [["red", "likely"]]}),
        *({"top": [["red"]]}, {"images": None}, {"score": "1/2"}),
    ):
        (copy / "evaluate-val/examples.jsonl").write_text(json.dumps(good | change) + "\n")
        with pytest.raises(UserError, match=r"examples\.jsonl, line 1 is no example"):
            write_report([copy])
    for line in (b'{"id": "1"}', b"5", b'"\xff\xfe"'):
        (copy / "evaluate-val/examples.jsonl").write_bytes(line + b"\n")
        with pytest.raises(UserError, match=r"examples\.jsonl, line 1 is no example"):
            write_report([copy])
    for name in ("evaluate-val/metrics.json", "run.json"):
        for text, told in (
            *(("{", "cannot be read as JSON"), ("[]", "is not what a run leaves")),
            ('{"options": [1], "figures": 5}', "is not what a run leaves"),
        ):
            (copy / name).write_text(text)
            with pytest.raises(UserError, match=rf"{name} {told}"):
                write_report([copy])


@pytest.mark.parametrize(("least", "most"), [(0, 1), (0, 0), (-3, 8.5), (1e-7, 5e-4), (92.9, 93)])
def test_ticks_are_few_and_enclose_the_values(least, most):
    found = ticks(least, most)
    assert found[0] <= least <= most <= found[-1]
    assert 2 <= len(found) <= 9
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_a_long_curve_is_averaged_and_says_so():
    line = Line("loss", list(range(1, 901)), [1.0, 3.0] * 450)
    drawn = chart("Losses", [line])
    assert len(drawn.lines[0]["points"].split()) == 300
    assert "mean of 3" in drawn.note
