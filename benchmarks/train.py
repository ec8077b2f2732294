"""Pre-training steps side by side: transformers' VisualBERT against the real loop of this project.

    python benchmarks/train.py                          # 20 words + 100 grids
    python benchmarks/train.py --grids 608 --batch-size 4
    python benchmarks/train.py --row gridvlp --rounds 1
    python benchmarks/train.py --profile                # where a step's time goes

BERT-base sizes, the same heads (masked words, matching, 9,500 answers), batch size, AdamW (fused)
and clipping, alternating, each in a process of its own:

    visualbert       VisualBertModel as it comes: its own attention, float32; batches in memory
    visualbert-bf16  the same under bfloat16 autocast
    gridvlp          gridvlp.train.pretraining.pretrain: corpus, store and loader included

The data are generated: maps of 2048 x 19 x 32 with half of the values zero, as after a ReLU;
sentences of 18 words, [CLS] and [SEP]. Prints sentences per second, floating-point operations per
second as a share of the machine's bfloat16 matrix-multiply peak (4096 cubed, in the same process),
peak memory, and the share of the time spent waiting for data. The operations are those that
gridvlp's step needs (counted by torch's FlopCounterMode), for all rows: what the others compute
beyond them does not count in their favour.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from memory import peak_mb
from torch import Tensor, nn
from torch.nn import functional

ROWS = ("visualbert", "visualbert-bf16", "gridvlp")
WORDS, PIECES, ANSWERS, CHANNELS = 18, 30522, 9500, 2048
IMAGES, SENTENCES = 48, 16  # of the generated corpus


@click.command(context_settings={"show_default": True})
@click.option("--row", "rows", multiple=True, type=click.Choice(ROWS), default=ROWS)
@click.option("--grids", default=100, help="Grids of an image; a map has 608.")
@click.option("--batch-size", default=32, help="Sentences of a step.")
@click.option("--steps", default=2, help="Timed steps of a process, after one that warms up.")
@click.option("--rounds", default=3, help="Processes per row; the median counts.")
@click.option("--profile", is_flag=True, help="Show where the time of one step goes, instead.")
@click.option("--one", is_flag=True, hidden=True, help="Measure in this process, print JSON.")
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    rows: tuple[str, ...], grids: int, batch_size: int, steps: int, rounds: int,
    profile: bool, one: bool, folder: Path | None,
) -> None:  # fmt: skip
    """Time the rows."""
    if one:
        assert folder is not None
        click.echo(json.dumps(measure(rows[0], folder, grids, batch_size, steps)))
        return
    with tempfile.TemporaryDirectory() as made:
        write_world(Path(made))
        if profile:
            click.echo(profiled(Path(made), grids, batch_size))
            return
        flops = count_flops(batch_size, grids)
        click.echo(
            f"{WORDS + 2} + {grids} tokens, batch {batch_size}, {torch.get_num_threads()} threads; "
            f"{flops / 1e12:.2f} TFLOP a step"
        )
        found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
        for _ in range(rounds):
            for row in rows:
                found[row].append(child(row, Path(made), grids, batch_size, steps))
    rates = {row: batch_size / median(runs, "seconds") for row, runs in found.items()}
    for row, runs in found.items():
        share = statistics.median(flops / run["seconds"] / run["peak"] for run in runs)
        done = flops * rates[row] / batch_size
        line = (
            f"{row:16} {rates[row]:6.2f} sentences/s, {done / 1e9:4.0f} of "
            f"{median(runs, 'peak') / 1e9:.0f} GFLOP/s ({100 * share:.0f}% of peak), "
            f"{max(run['mb'] for run in runs):,.0f} MB"
        )
        if row == "gridvlp":
            line += f", {100 * max(run['waited'] for run in runs):.1f}% waiting for data"
        elif "gridvlp" in rates:
            line += f"; gridvlp is {rates['gridvlp'] / rates[row]:.2f} times as fast"
        click.echo(line)


def median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def child(row: str, folder: Path, grids: int, batch_size: int, steps: int) -> dict[str, float]:
    """Measure in a fresh process, whose peak memory is its own."""
    line = [sys.executable, "-W", "ignore", __file__, "--one", "--row", row]
    line += ["--folder", str(folder), "--grids", str(grids)]
    line += ["--batch-size", str(batch_size), "--steps", str(steps)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{row} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(row: str, folder: Path, grids: int, batch_size: int, steps: int) -> dict[str, float]:
    """Seconds per step, memory before the peak is measured, and the peak around the steps."""
    torch.manual_seed(0)
    run = gridvlp if row == "gridvlp" else visualbert
    seconds, waited = run(row, folder, grids, batch_size, steps)
    used = peak_mb()
    return {"seconds": seconds, "waited": waited / seconds, "mb": used, "peak": matmul_peak()}


def matmul_peak(size: int = 4096) -> float:
    """Best of three large matrix products in bfloat16, in operations per second."""
    a = torch.rand(size, size).bfloat16()
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


class VisualBertHeads(nn.Module):
    """VisualBertModel with the three heads, as its own ForPreTraining class has two of them."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import VisualBertConfig, VisualBertModel
        from transformers.models.visual_bert.modeling_visual_bert import VisualBertPreTrainingHeads

        from gridvlp.train.model.fusion import AnswerHead

        config = VisualBertConfig(visual_embedding_dim=CHANNELS)
        self.bert = VisualBertModel(config)
        self.cls = VisualBertPreTrainingHeads(config)
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.answering = AnswerHead(config.hidden_size, 2 * config.hidden_size, ANSWERS)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The summed loss; words are predicted at the text's positions, none at the grids'."""
        ids_BL = batch["input_ids"]
        out = self.bert(
            input_ids=ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            visual_embeds=batch["grids"],
            visual_attention_mask=torch.ones(batch["grids"].shape[:2], dtype=torch.long),
        )
        text_BLD = out.last_hidden_state[:, : ids_BL.shape[1]]
        words_BLV, match_B2 = self.cls(text_BLD, out.pooler_output)
        answers_BA = self.answering(out.pooler_output)
        return (
            functional.cross_entropy(words_BLV.flatten(0, 1).float(), batch["labels"].flatten())
            + functional.cross_entropy(match_B2.float(), batch["matched"])
            + functional.cross_entropy(answers_BA.float(), batch["answers"])
        )


def visualbert(
    row: str, folder: Path, grids: int, batch_size: int, steps: int
) -> tuple[float, float]:
    """The usual training step."""
    model = VisualBertHeads().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)

    def batch() -> dict[str, Tensor]:
        ids_BL = torch.randint(1000, PIECES, (batch_size, WORDS + 2))
        return {
            "input_ids": ids_BL,
            "grids": torch.rand(batch_size, grids, CHANNELS),
            "labels": torch.where(torch.rand(ids_BL.shape) < 0.15, ids_BL, -100),
            "matched": torch.randint(2, (batch_size,)),
            "answers": torch.randint(ANSWERS, (batch_size,)),
        }

    batches = [batch() for _ in range(steps + 1)]
    times = []
    for made in batches:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=row.endswith("bf16")):
            loss = model(made)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), 0.0


class Measured(BaseException):
    """Enough steps were made."""


def profiled(folder: Path, grids: int, batch_size: int) -> str:
    """A table of the operations of one step, forward, backward and optimiser."""
    from torch.profiler import ProfilerActivity

    peak = matmul_peak()
    profiler = torch.profiler.profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True
    )
    seconds, _ = gridvlp("gridvlp", folder, grids, batch_size, 2, profiler)
    kinds: dict[str, list[float]] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        name = event.key.removeprefix("aten::")
        if name in ("mm", "addmm", "bmm"):
            sides = sorted({side for shape in event.input_shapes for side in shape[-2:]})[-2:]
            name = "attention" if name == "bmm" else f"products, sides up to {sides}"
        found = kinds.setdefault(name, [0.0, 0.0])
        found[0] += event.self_cpu_time_total / 1e3
        found[1] += event.flops
    total = sum(ms for ms, _ in kinds.values())
    lines = [f"a step takes {seconds:.2f} s; operations of one, under the profiler {total:.0f} ms:"]
    for name, (ms, flops) in sorted(kinds.items(), key=lambda kind: -kind[1][0])[:24]:
        rate = (
            f"{flops / ms / 1e6:5.0f} GFLOP/s, {100e3 * flops / ms / peak:3.0f}%" if flops else ""
        )
        lines.append(f"{ms:8.1f} ms {100 * ms / total:5.1f}%  {name:40} {rate}")
    return "\n".join([*lines, f"matrix-multiply peak: {peak / 1e9:.0f} GFLOP/s"])


def gridvlp(
    row: str, folder: Path, grids: int, batch_size: int, steps: int, profiler: Any = None
) -> tuple[float, float]:
    """The real loop, stopped after some steps; only its log is listened to."""
    from gridvlp.run.folder import RunFolder
    from gridvlp.run.prefetch import Prefetch
    from gridvlp.train import loop as training
    from gridvlp.train.options import PreTrainingOptions, TrainingSettings
    from gridvlp.train.pretraining import pretrain

    moments: list[tuple[float, float]] = []
    loaders: list[Prefetch] = []

    class Watched(Prefetch):
        def __iter__(self) -> Any:
            loaders.append(self)
            return super().__iter__()

    def log(self: RunFolder, step: int, values: dict[str, float]) -> None:
        moments.append((time.perf_counter(), loaders[0].waited))
        if len(moments) <= steps:
            return
        if profiler is not None and len(moments) == steps + 1:
            profiler.start()
            return
        if profiler is not None:
            profiler.stop()
            moments.pop()
        raise Measured

    training.Prefetch, training.LOG_STEPS, RunFolder.log = Watched, 1, log
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    options = PreTrainingOptions(
        features=(folder / "store.zarr",),
        data=folder / "data",
        run=run,
        vocabulary=folder / "vocab.txt",
        answers=folder / "answers.json",
        grids=grids if grids < 608 else None,
        training=TrainingSettings(1e-4, 10, batch_size, 0.05),
    )
    with contextlib.suppress(Measured):
        pretrain(options, lambda line: None)
    times, waited = np.diff(np.array(moments), axis=0).T
    return float(np.median(times)), float(waited.mean())


def count_flops(batch_size: int, grids: int) -> float:
    """Matrix-multiply operations of gridvlp's step, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from gridvlp.train.model.fusion import GridVLPConfig, GridVLPForPreTraining, choose_attention

    config = GridVLPConfig(vocab_size=PIECES, answers=[str(i) for i in range(ANSWERS)])
    length, images = WORDS + 2, -(-batch_size // 8)
    with torch.device("meta"):
        model = GridVLPForPreTraining(config).train()
        choose_attention(model, torch.device("cpu"))
        inputs = {
            "input_ids_BL": torch.zeros(batch_size, length, dtype=torch.long),
            "text_mask_BL": torch.ones(batch_size, length, dtype=torch.bool),
            "grids_IGC": torch.rand(images, grids, CHANNELS),
            "grid_mask_IG": torch.ones(images, grids, dtype=torch.bool),
            "image_index_B": torch.zeros(batch_size, dtype=torch.long),
        }
        with FlopCounterMode(display=False) as counter:
            masked = torch.zeros(round(0.15 * batch_size * WORDS), dtype=torch.long)
            logits = model(inputs, masked)
            sum(part.sum() for part in logits if part is not None).backward()
    return float(counter.get_total_flops())


def write_world(folder: Path) -> None:
    """Captions, questions and maps in the official formats."""
    from corpus import dump

    from gridvlp.store import StoreWriter

    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(PIECES - 5)]
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n"
    )
    answers = [f"answer {number}" for number in range(ANSWERS)]
    (folder / "answers.json").write_text(json.dumps(answers))

    def sentence() -> str:
        return " ".join(words[i] for i in rng.integers(len(words), size=WORDS))

    for part in ("coco/annotations", "vqa"):
        (folder / "data" / part).mkdir(parents=True)
    images = range(1, IMAGES + 1)
    numbered = [(image, image * 100 + n) for image in images for n in range(SENTENCES // 2)]
    photos = json.dumps([{"id": image} for image in images])
    for split, entries in (("train", numbered), ("val", [])):
        dump(
            folder / f"data/coco/annotations/captions_{split}2017.json",
            [{"image_id": image, "id": id, "caption": sentence()} for image, id in entries],
            f'{{"images": {photos if entries else []}, "annotations": ',
            "}",
        )
    dump(
        folder / "data/vqa/v2_OpenEnded_mscoco_train2014_questions.json",
        [{"image_id": i, "question_id": id, "question": sentence()} for i, id in numbered],
        '{"questions": ',
        "}",
    )
    dump(
        folder / "data/vqa/v2_mscoco_train2014_annotations.json",
        [
            {"question_id": id, "answers": [{"answer": answers[int(rng.integers(ANSWERS))]}] * 10}
            for _, id in numbered
        ],
        '{"annotations": ',
        "}",
    )
    with StoreWriter.create(folder / "store.zarr", encoder={"name": "made up"}) as writer:
        for image in images:
            map_CHW = np.maximum(rng.standard_normal((CHANNELS, 19, 32), dtype=np.float32), 0)
            writer.add(f"{image:012}", map_CHW)


if __name__ == "__main__":
    main()
