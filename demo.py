"""From photos to answers in one command, on the sample world, on two CPU cores.

    make demo

Runs the commands of the README in runs/demo, each printed as it is typed, and ends with a table
(runs/demo/results.json), a picture (runs/demo/answer.png) and a page about all runs
(runs/demo/report.html). What is up to date is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "runs" / "demo"
CODE = ("*.py", "*.yaml", "*.html")
TASKS = {"vqa": "test", "gqa": "testdev", "nlvr2": "test1"}
STEPS = {
    "sample-data": "sample-data .",
    "train-extractor": "train-extractor --visual-genome data/vg",
    "extract": "extract --images coco/ --images gqa/images --images nlvr2/images",
    "pretrain": "pretrain --features store.zarr",
    **{f"finetune {task}": f"finetune {task}" for task in TASKS},
    **{f"evaluate {task}": f"evaluate {task} --split {s} --withheld" for task, s in TASKS.items()},
}


def main() -> None:
    """Run what is not done yet, then show the outcome."""
    started = fresh_folder()
    done = json.loads(started.read_text())
    seconds, before, start = done["seconds"], done["total"], time.monotonic()

    def step(name: str, processes: int = 1) -> None:
        if name in seconds:
            print(f"$ gridvlp {STEPS[name]}    (done)")
        else:
            keep(name, command(STEPS[name].split(), processes))

    def keep(name: str, took: float) -> None:
        seconds[name] = took
        done["total"] = before + time.monotonic() - start
        started.write_text(json.dumps(done, indent=2))

    for name in ("sample-data", "train-extractor", "extract", "pretrain"):
        step(name)
    # two processes of one thread do half as much again as one of two, with a model this small
    with ThreadPoolExecutor(1) as pool:
        beside = None
        if "finetune nlvr2" not in seconds:
            beside = pool.submit(
                command, STEPS["finetune nlvr2"].split(), 2, FOLDER / "finetune-nlvr2.log"
            )
        step("finetune vqa", processes=2)
        step("finetune gqa", processes=2)
        if beside is not None:
            keep("finetune nlvr2", beside.result())
    for task in TASKS:
        step(f"evaluate {task}")
    results = collect(seconds)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    ask(seconds)
    runs = [f"runs/{name}" for name in ("extractor", "pretrain", *(f"finetune-{t}" for t in TASKS))]
    seconds["report"] = command(["report", *runs, "--out", "report.html"])
    show(results, seconds, before + time.monotonic() - start)


def command(arguments: list[str], processes: int = 1, log: Path | None = None) -> float:
    """Run a command of gridvlp in the demo's folder; returns its seconds.

    Args:
        arguments: of gridvlp.
        processes: that many run at the same time and share the processors.
        log: takes what it prints.
    """
    told = f" > {log.relative_to(FOLDER)}" if log else ""
    print(f"\n$ gridvlp {shlex.join(arguments)}{told}", flush=True)
    start = time.monotonic()
    line = [sys.executable, "-W", "ignore", "-m", "gridvlp.cli", *arguments]
    environment = dict(os.environ)
    if processes > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    with log.open("w") if log else nullcontext() as file:
        code = subprocess.run(
            line, cwd=FOLDER, env=environment, stdout=file, stderr=file, check=False
        ).returncode
    if code:
        print(f"It ended with exit code {code}{f': see {log}' if log else ''}.", flush=True)
        sys.exit(code)
    return round(time.monotonic() - start, 1)


def fresh_folder() -> Path:
    """The folder of the demo; emptied when it was made by other code or settings."""
    digest = hashlib.sha256()
    for path in sorted(
        [Path(__file__), *(p for kind in CODE for p in (ROOT / "gridvlp").rglob(kind))]
    ):
        digest.update(path.read_bytes())
    started = FOLDER / "demo.json"
    if started.exists() and json.loads(started.read_text())["code"] != digest.hexdigest():
        print(f"{FOLDER.relative_to(ROOT)} was made by other code: starting over.")
        shutil.rmtree(FOLDER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not started.exists():
        started.write_text(json.dumps({"code": digest.hexdigest(), "seconds": {}, "total": 0.0}))
    return started


def collect(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Accuracies in percent; seconds are those of fine-tuning and evaluating the task."""
    results = {}
    for task, split in TASKS.items():
        metrics = json.loads(
            (FOLDER / f"runs/finetune-{task}/evaluate-{split}/metrics.json").read_text()
        )
        results[task] = {
            "accuracy": round(metrics["figures"]["accuracy"], 2),
            "withheld": round(metrics["withheld"]["accuracy"], 2),
            "majority": round(metrics["majority"], 2),
            "seconds": round(seconds[f"finetune {task}"] + seconds[f"evaluate {task}"], 1),
        }
    return results


def ask(seconds: dict[str, float]) -> None:
    """Ask the model about a test photo that nothing was trained on, and draw where it looked."""
    questions = json.loads(
        (FOLDER / "data/vqa/v2_OpenEnded_mscoco_test2015_questions.json").read_text()
    )["questions"]
    chosen = next(q for q in questions if q["question"].startswith("What color"))
    photo = f"data/coco/test2015/COCO_test2015_{chosen['image_id']:012}.jpg"
    options = ["predict", "vqa", "--image", photo, "--question", chosen["question"]]
    seconds["predict"] = command([*options, "--picture", "answer.png"])


def show(results: dict[str, dict[str, float]], seconds: dict[str, float], total: float) -> None:
    """Print the table and where things are."""
    table = Table(title="Sample world (generated), test splits, percent")
    for column in ("task", "accuracy", "image withheld", "majority of type", "seconds"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, row in results.items():
        table.add_row(
            f"{task} {TASKS[task]}",
            *(f"{row[name]:.1f}" for name in ("accuracy", "withheld", "majority")),
            f"{row['seconds']:.0f}",
        )
    Console().print(table)
    steps = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    print(f"Seconds: {steps}; in all {total:.0f}, finetune nlvr2 beside the two others.")
    print(f"Results: {(FOLDER / 'results.json').relative_to(ROOT)}")
    print(f"Picture: {(FOLDER / 'answer.png').relative_to(ROOT)}")
    print(f"Report:  {(FOLDER / 'report.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
