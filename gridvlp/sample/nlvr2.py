"""NLVR2: sets of four pairs of photos, and sentences that are true of two of the four."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.sample.files import write_text
from gridvlp.sample.photos import DIRECTORIES, PAIRS_PER_SET, Photos
from gridvlp.sample.statements import choose_statements

SENTENCES_PER_SET = 7


def write_nlvr2(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    """Write the lines of the three splits; returns the counts."""
    counts = {}
    for part, official in enumerate(("train", "dev", "test1")):
        photos = splits[f"nlvr2-{official}"]
        rng = np.random.default_rng([seed, 105, part])
        pairs = list(zip(photos.scenes[::2], photos.scenes[1::2], strict=True))
        lines = []
        for number in range(len(pairs) // PAIRS_PER_SET):
            of_set = pairs[number * PAIRS_PER_SET : (number + 1) * PAIRS_PER_SET]
            chosen = choose_statements(of_set, SENTENCES_PER_SET, rng)
            for pair in range(PAIRS_PER_SET):
                for place, (sentence, truths) in enumerate(chosen):
                    line: dict[str, Any] = {
                        "validation": {"1": str(truths[pair])},
                        "sentence": sentence,
                        "left_url": "",
                        "writer": "1",
                        "label": str(truths[pair]),
                        "right_url": "",
                        "synset": "thing",
                        "query": f"generated things{number}",
                        "identifier": f"{official}-{number}-{pair}-{place}",
                    }
                    if official == "train":
                        line["directory"] = number % DIRECTORIES
                    else:
                        line["extra_validations"] = {}
                    lines.append(json.dumps(line))
        write_text(data / "nlvr2" / f"{official}.json", "\n".join(lines) + "\n")
        counts[f"NLVR2 pairs {official}"] = len(pairs)
        counts[f"NLVR2 lines {official}"] = len(lines)
    return counts
