"""Starting on a corpus of the paper's size: 9.18M pairs on 180K images, all of it generated.

    python benchmarks/corpus.py                          # a hundredth of it, in a temporary folder
    python benchmarks/corpus.py FOLDER --scale 1         # 4 GB with the store, a quarter of an hour

Writes COCO captions, Visual Genome regions and questions, VQA v2 and GQA in their official formats,
with LXMERT's counts of pairs and images per source (its Table 1), and a store with a (tiny) map of
each photo. Then `gridvlp pretrain` starts on it, each time in a process of its own, up to its first
batch: without a cache, with one, and with one again. Prints the seconds to each point and the
process's memory: resident, of which its own (anonymous) and of mapped files, which processes share;
and the greatest of both.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

STARTED = time.perf_counter()  # before the imports that a start pays for

# Pairs and images as LXMERT counts them (Table 1): 72K photos of COCO alone, 57K of Visual Genome
# alone, 51K of both. MINIVAL photos of COCO are held out.
IMAGES = {"coco": 72_000, "both": 51_000, "vg": 57_000}
MINIVAL = 5_000
PAIRS = {"captions": 617_000, "vg-regions": 5_390_000, "vqa": 658_000, "gqa": 1_071_000,
         "vg-qa": 1_442_000}  # fmt: skip
WORDS = {"captions": 10.5, "vg-regions": 5.2, "vqa": 6.2, "gqa": 8.0, "vg-qa": 5.7}  # mean lengths
LEXICON, ANSWERS = 40_000, 60_000
SYLLABLES = ["ba", "co", "di", "fen", "gor", "hul", "ka", "lem", "mi", "nor", "pa", "ris", "su",
             "tel", "ver", "zo"]  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--scale", default=0.01, help="Share of the pairs and images.")
@click.option("--rounds", default=2, help="Starts with a cache.")
@click.option("--keep", is_flag=True, help="Start only with the cache that an earlier call left.")
@click.option("--write", "only", is_flag=True, help="Write it and do no more.")
@click.option("--start", "one", is_flag=True, hidden=True, help="Measure one start, print JSON.")
def main(folder: Path | None, scale: float, rounds: int, keep: bool, only: bool, one: bool) -> None:
    """Write the corpus to FOLDER, if it is not there, and start on it."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            compare(Path(made), scale, rounds, keep, only)
    elif one:
        click.echo(json.dumps(start(folder)))
    else:
        compare(folder, scale, rounds, keep, only)


def compare(folder: Path, scale: float, rounds: int, keep: bool, only: bool) -> None:
    """Starts without and with a cache."""
    if not (folder / "written").exists():
        begun = time.perf_counter()
        write(folder, scale)
        size = sum(path.stat().st_size for path in (folder / "data").rglob("*.json"))
        click.echo(f"Written in {time.perf_counter() - begun:.0f} s: {size / 1e9:.2f} GB of JSON")
        (folder / "written").touch()
    if only:
        return
    if not keep:
        shutil.rmtree(folder / "data" / ".gridvlp-cache", ignore_errors=True)
    for name in ([] if keep else ["no cache"]) + ["cache"] * rounds:
        told = child(folder, shown=name == "no cache")
        points = ", ".join(f"{point} {seconds:.1f}" for point, seconds in told["seconds"].items())
        memory = ", ".join(f"{kind} {mb:.0f}" for kind, mb in told["mb"].items())
        click.echo(f"{name}: {told['pairs']:,} pairs on {told['images']:,} images")
        click.echo(f"  seconds since the start: {points}")
        click.echo(f"  MB: {memory}")
    cache = sum(
        p.stat().st_size for p in (folder / "data/.gridvlp-cache").rglob("*") if p.is_file()
    )
    click.echo(f"cache on disk: {cache / 1e6:.0f} MB")


def child(folder: Path, shown: bool) -> dict[str, Any]:
    """Measure a start in a fresh process, whose own messages may be shown."""
    line = [sys.executable, "-W", "ignore", __file__, str(folder), "--start"]
    told = None if shown else subprocess.DEVNULL
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=told, text=True, check=False)
    if done.returncode:
        raise click.ClickException("a start failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass
class Reached(BaseException):
    """Training would begin now."""

    batches: Any
    steps_per_epoch: int


def start(folder: Path) -> dict[str, Any]:
    """`gridvlp pretrain` up to its first step; the seconds and the memory that it took."""
    seconds = {}

    def point(name: str) -> None:
        seconds[name] = time.perf_counter() - STARTED

    from gridvlp.train import pretraining
    from gridvlp.train.options import PreTrainingOptions

    point("imported")

    def fit(model: Any, tokenizer: Any, batches: Any, *_: Any, **options: Any) -> None:
        raise Reached(batches, options["steps_per_epoch"])

    pretraining.fit = fit
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    options = PreTrainingOptions(features=(folder / "store.zarr",), data=folder / "data", run=run)
    try:
        pretraining.pretrain(options, lambda line: print(line, file=sys.stderr))
        raise RuntimeError("pretrain did not come to training")
    except Reached as reached:
        point("ready")
        make, epoch = reached.batches, reached.steps_per_epoch
        make(0)
        point("first batch")
        seconds["ten more batches"] = timed(lambda: [make(step) for step in range(1, 11)])
        seconds["the next epoch's first"] = timed(lambda: make(epoch))
        pairs, images = len(make.corpus), make.corpus.images
        return {"seconds": seconds, "mb": memory(), "pairs": pairs, "images": images}


def timed(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def memory() -> dict[str, float]:
    """MB that this process holds, and held at most."""
    names = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "of files", "VmHWM": "most resident"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {names[n[0][:-1]]: int(n[1]) / 1024 for n in lines if n and n[0][:-1] in names}


class Text:
    """Sentences of made-up words, common and rare as words are (Zipf)."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        spelled = {
            "".join(SYLLABLES[i] for i in self.rng.integers(len(SYLLABLES), size=n))
            for n in self.rng.integers(1, 6, size=2 * LEXICON)
        }
        self.words = np.array(sorted(spelled)[:LEXICON], dtype=object)
        self.rng.shuffle(self.words)
        share = 1 / np.arange(1, len(self.words) + 1)
        self.cumulative = np.cumsum(share / share.sum())

    def sentences(self, count: int, mean: float) -> Iterator[str]:
        """``count`` sentences of ``mean`` words on average."""
        for first in range(0, count, 1 << 16):
            many = min(1 << 16, count - first)
            lengths = 1 + self.rng.poisson(mean - 1, size=many)
            drawn = np.searchsorted(self.cumulative, self.rng.random(lengths.sum()))
            words = self.words[np.minimum(drawn, len(self.words) - 1)].tolist()
            end = 0
            for length in lengths.tolist():
                begin, end = end, end + length
                yield " ".join(words[begin:end])

    def answers(self, count: int) -> list[str]:
        """Answers: half of them yes or no, the others from a long tail."""
        rank = np.minimum(self.rng.zipf(1.3, size=count), ANSWERS).tolist()
        kind = self.rng.random(count).tolist()
        words = self.words
        return [
            ("yes" if k < 0.28 else "no") if k < 0.5
            else f"{words[r % len(words)]} {words[r // 7]}" if r > 9000 else words[r]
            for k, r in zip(kind, rank, strict=True)
        ]  # fmt: skip


def write(folder: Path, scale: float) -> None:
    """The annotation files and a store with a map of each photo."""
    text = Text()
    count = {name: max(8, round(scale * many)) for name, many in IMAGES.items()}
    coco = np.arange(1, count["coco"] + count["both"] + 1) * 4 + 1
    vg = np.arange(1, count["both"] + count["vg"] + 1) * 13 + 2
    in_both = coco[-count["both"] :]
    minival = coco[:: max(1, len(coco) // max(1, round(scale * MINIVAL)))]
    pairs = {name: max(100, round(scale * many)) for name, many in PAIRS.items()}
    data = folder / "data"
    for part in ("coco/annotations", "vg", "vqa", "gqa"):
        (data / part).mkdir(parents=True, exist_ok=True)

    dump(
        data / "vg/image_data.json",
        (
            {"image_id": image, "width": 800, "height": 600, "flickr_id": None, "url": "",
             "coco_id": int(in_both[i]) if i < len(in_both) else None}
            for i, image in enumerate(vg.tolist())
        ),
    )  # fmt: skip
    held = set(minival.tolist())
    train = np.array([image for image in coco.tolist() if image not in held])
    share = len(minival) / len(coco)
    number = 0
    for split, images, many in (
        ("train2017", train, round(pairs["captions"] * (1 - share))),
        ("val2017", minival, round(pairs["captions"] * share)),
    ):
        captions = dealt(images, text.sentences(many, WORDS["captions"]), many)
        photos = [{"id": i, "file_name": f"{i:012}.jpg"} for i in images.tolist()]
        path = data / f"coco/annotations/captions_{split}.json"
        entries = (
            {"image_id": image, "id": (number := number + 1), "caption": caption}
            for image, caption in captions
        )
        dump(path, entries, '{"images": ' + json.dumps(photos) + ', "annotations": ', "}")
    regions = dealt(vg, text.sentences(pairs["vg-regions"], WORDS["vg-regions"]),
                    pairs["vg-regions"])  # fmt: skip
    dump(
        data / "vg/region_descriptions.json",
        (
            {"regions": [{"region_id": image * 1000 + n, "width": 82, "height": 139,
                          "image_id": image, "phrase": phrase, "y": 57, "x": 421}
                         for n, phrase in enumerate(phrases)], "id": image}
            for image, phrases in grouped(regions)
        ),
    )  # fmt: skip
    answers = iter(text.answers(pairs["vg-qa"]))
    questions = dealt(vg, text.sentences(pairs["vg-qa"], WORDS["vg-qa"]), pairs["vg-qa"])
    dump(
        data / "vg/question_answers.json",
        (
            {"id": image, "qas": [{"a_objects": [], "question": f"{question}?", "image_id": image,
                                   "qa_id": image * 1000 + n, "answer": next(answers),
                                   "q_objects": []}
                                  for n, question in enumerate(asked)]}
            for image, asked in grouped(questions)
        ),
    )  # fmt: skip
    write_vqa(data / "vqa", text, coco, pairs["vqa"])
    for split, part in (("train", 0.88), ("val", 0.12)):
        many = round(part * pairs["gqa"])
        said = text.sentences(many, WORDS["gqa"])
        answers = iter(text.answers(many))
        with (data / f"gqa/{split}_balanced_questions.json").open("w") as file:
            for n, (image, question) in enumerate(dealt(vg, said, many)):
                entry = {
                    "semantic": [{"operation": "select", "dependencies": [], "argument": "it (1)"}],
                    "entailed": [], "equivalent": [], "question": f"{question}?",
                    "imageId": str(image), "isBalanced": True, "answer": next(answers),
                    "groups": {"global": None, "local": "06-it"}, "semanticStr": "select: it (1)",
                    "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                    "types": {"detailed": "existAttrC", "semantic": "attr", "structural": "verify"},
                    "fullAnswer": "",
                }  # fmt: skip
                file.write(f'{"{" if n == 0 else ", "}"{split}{n:08}": {json.dumps(entry)}')
            file.write("}")
    write_store(folder / "store.zarr", [f"{i:012}" for i in coco.tolist()],
                [str(i) for i in vg[len(in_both) :].tolist()])  # fmt: skip


def write_vqa(folder: Path, text: Text, images: np.ndarray, pairs: int) -> None:
    """Questions and the ten answers to each, train and val."""
    id = 0
    for split, part in (("train2014", 0.67), ("val2014", 0.33)):
        many = round(part * pairs)
        half = (
            images[: len(images) * 2 // 3]
            if split == "train2014"
            else images[len(images) * 2 // 3 :]
        )
        asked = list(dealt(half, text.sentences(many, WORDS["vqa"]), many))
        majority, other = text.answers(many), text.answers(many)
        agree = text.rng.integers(3, 11, size=many).tolist()
        ids = range(id, id + many)
        id += many
        dump(
            folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
            (
                {"image_id": image, "question": f"{question}?", "question_id": n}
                for n, (image, question) in zip(ids, asked, strict=True)
            ),
            '{"questions": ',
            "}",
        )
        dump(
            folder / f"v2_mscoco_{split}_annotations.json",
            (
                {
                    "question_type": "what is", "multiple_choice_answer": first,
                    "answers": [{"answer": first if k < same else second,
                                 "answer_confidence": "yes", "answer_id": k + 1}
                                for k in range(10)],
                    "image_id": image, "answer_type": "other", "question_id": n,
                }
                for n, (image, _), first, second, same in zip(
                    ids, asked, majority, other, agree, strict=True
                )
            ),
            '{"annotations": ',
            "}",
        )  # fmt: skip


def dealt(images: np.ndarray, sentences: Iterable[str], count: int) -> Iterator[tuple[int, str]]:
    """Sentences in turn to images, as many to each as comes out even."""
    numbers = (np.arange(count) * len(images) // count).tolist()
    listed = images.tolist()
    for number, sentence in zip(numbers, sentences, strict=True):
        yield listed[number], sentence


def grouped(pairs: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Pairs whose images follow each other, by image."""
    image, held = None, []
    for next_image, sentence in pairs:
        if next_image != image and image is not None:
            yield image, held
            held = []
        image = next_image
        held.append(sentence)
    if image is not None:
        yield image, held


def dump(path: Path, entries: Iterable[Any], before: str = "", after: str = "") -> None:
    """A JSON list, entry by entry."""
    with path.open("w") as file:
        file.write(before + "[")
        for number, entry in enumerate(entries):
            file.write((", " if number else "") + json.dumps(entry))
        file.write("]" + after)


def write_store(path: Path, *keys: list[str]) -> None:
    """A map of one channel for each key: the index, not the maps, is what a start reads."""
    from gridvlp.store import StoreWriter

    shutil.rmtree(path, ignore_errors=True)
    map_CHW = np.ones((1, 19, 32), dtype=np.float16)
    with StoreWriter.create(path, channels=1, max_grids=608, encoder={"name": "made up"}) as writer:
        for key in (key for part in keys for key in part):
            writer.add(key, map_CHW)


if __name__ == "__main__":
    main()
