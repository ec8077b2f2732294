"""Reading a release of Visual Genome's size: `json.load` into lists, against `gridvlp`'s arrays.

    python benchmarks/annotations.py

Writes a generated release (objects.json, attributes.json, image_data.json and empty photo files)
and reads it in processes of their own: (a) as usual, json.load and one dictionary of NumPy arrays a
photo; (b) as train-extractor does the first time; (c) as it does from then on, from its cache.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import click

READ = """
import json, os, resource, sys, time
from pathlib import Path
folder = Path(sys.argv[2])
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0])
if sys.argv[1] == "usual":
    import numpy as np
    before, held = memory("VmRSS"), memory("RssAnon")
    start = time.perf_counter()
    load = lambda name: json.loads((folder / f"{name}.json").read_bytes())
    sizes = {e["image_id"]: e for e in load("image_data")}
    told = {t["object_id"]: t["attributes"] for e in load("attributes") for t in e["attributes"]}
    photos, names, words = [], {}, {}
    for entry in load("objects"):
        boxes = [(o["x"], o["y"], o["x"] + o["w"], o["y"] + o["h"]) for o in entry["objects"]]
        rows = np.full((len(boxes), 16), -1)
        for row, thing in zip(rows, entry["objects"]):
            given = [words.setdefault(w, len(words)) for w in told.get(thing["object_id"], ())][:16]
            row[: len(given)] = given
        classes = [names.setdefault(o["names"][0], len(names)) for o in entry["objects"]]
        photos.append({"boxes": np.array(boxes, np.float32), "classes": np.array(classes),
            "attributes": rows, "path": folder / "VG_100K" / f"{entry['image_id']}.jpg"})
    boxes = sum(len(photo["boxes"]) for photo in photos)
else:
    from gridvlp.extract.visual_genome import read_visual_genome
    before, held = memory("VmRSS"), memory("RssAnon")
    start = time.perf_counter()
    data = read_visual_genome(folder)
    photos, boxes = len(data), data.counts.boxes
    data[len(data) // 2]
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([seconds, peak, memory("RssAnon") - held, boxes]))
"""


def write_release(folder: Path, photos: int) -> None:
    rng = random.Random(0)
    names = [f"object{int(rng.paretovariate(0.7)) % 50_000}" for _ in range(20_000)]
    words = [f"attribute{int(rng.paretovariate(0.7)) % 20_000}" for _ in range(10_000)]
    (folder / "VG_100K").mkdir()
    number = 0
    files = [(folder / f"{n}.json").open("w") for n in ("image_data", "objects", "attributes")]
    for i in range(photos):
        things = []
        for _ in range(rng.randint(20, 50)):
            number += 1
            x, y, w, h = (rng.randrange(1, 250) for _ in range(4))
            name = rng.choice(names)
            things.append({"synsets": [f"{name}.n.01"], "h": h, "object_id": number,
                "names": [name], "w": w, "y": y, "x": x})  # fmt: skip
        told = [
            {**thing, "attributes": rng.choices(words, k=rng.randint(1, 3))}
            for thing in things
            if rng.random() < 0.5
        ]
        image = {"image_id": i, "width": 500, "height": 375, "coco_id": None, "flickr_id": None}
        url = f"https://cs.stanford.edu/people/rak248/VG_100K/{i}.jpg"
        entries = (
            {**image, "url": url},
            {"image_id": i, "objects": things, "image_url": url},
            {"image_id": i, "attributes": told},
        )
        for file, entry in zip(files, entries, strict=True):
            file.write(("[" if i == 0 else ", ") + json.dumps(entry))
        (folder / "VG_100K" / f"{i}.jpg").touch()
    for file in files:
        file.write("]")
        file.close()


def measure(way: str, folder: Path, cache: Path) -> tuple[float, float, float, int]:
    """Seconds; in MB the peak over what the imports took, and what is kept unshared; boxes."""
    repository = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "GRIDVLP_CACHE": str(cache), "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", READ, way, str(folder)]
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak, own, boxes = json.loads(found.stdout.splitlines()[-1])
    return seconds, peak / 1024, own / 1024, boxes


@click.command(context_settings={"show_default": True})
@click.option("--photos", default=108_000, help="Photos of the generated release.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the release here, or use it.")
def main(photos: int, folder: Path | None) -> None:
    """Read it in the three ways."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary) / "vg"
        if not (folder / "attributes.json").exists():
            folder.mkdir(parents=True)
            write_release(folder, photos)
        size = sum(path.stat().st_size for path in folder.glob("*.json")) / 1e6
        rows = [
            (title, *measure(way, folder, Path(temporary) / "cache"))
            for title, way in (
                ("(a) json.load, dictionaries", "usual"),
                ("(b) gridvlp, the first time", "arrays"),
                ("(c) gridvlp, from its cache", "arrays"),
            )
        ]
    print(f"Generated: {photos:,} photos, {rows[0][4]:,} boxes, {size:,.0f} MB of JSON\n")
    print("| | seconds | (a) / it | peak MB over the start | own MB afterwards |\n|-|-|-|-|-|")
    for title, seconds, peak, own, _ in rows:
        print(
            f"| {title} | {seconds:.1f} | {rows[0][1] / seconds:.1f} | {peak:,.0f} | {own:,.0f} |"
        )


if __name__ == "__main__":
    main()
