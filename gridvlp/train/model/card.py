"""The README.md beside a model's weights: what it is, what it was made of, how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gridvlp.atomic import write_text

LICENSE = (
    "The weights are not under the licence of gridvlp: what may be done with them follows from the "
    "licences of the photos and annotations above and of the encoder's and BERT's weights. COCO's "
    "annotations, VQA v2, Visual Genome, GQA and NLVR2's sentences are published under CC-BY-4.0; "
    "the photos belong to their owners."
)


def write_card(
    folder: Path,
    title: str,
    config: Any,
    record: dict[str, Any],
    figures: dict[str, Any],
) -> None:
    """Write README.md into a model's folder.

    Args:
        folder: of the weights.
        title: of the run, such as "finetune vqa".
        config: the model's, a GridVLPConfig.
        record: what run.json holds: options, facts, environment.
        figures: of the kept epoch.
    """
    options, facts, environment = (record[name] for name in ("options", "facts", "environment"))
    encoder = facts.get("encoder") or config.grid_encoder or {}
    measured = {name: value for name, value in figures.items() if name not in ("epoch", "step")}
    lines = [
        "---",
        "library_name: gridvlp",
        "tags: [vision-language, grid-features]",
        "---",
        "",
        f"# Grid-VLP, {title}",
        "",
        f"{(config.architectures or ['A fusion model'])[0]}: {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.vocab_size:,} word pieces, "
        f"{len(config.answers or ()):,} answers. It reads sentences and frozen "
        f"{'region features with boxes' if config.regions else 'grid maps'} of "
        f"{config.grid_channels:,} channels, never pixels, and only those of the encoder that it "
        "was trained on.",
        "",
        "## Encoder",
        "",
        *_table(encoder),
        "",
        "## Trained on",
        "",
        *_table(facts, skip=("encoder",)),
        "",
        f"## Figures of the held-out data, epoch {figures.get('epoch', '-')}, "
        f"step {figures.get('step', '-')}",
        "",
        *(_table(measured) if measured else ["None were measured."]),
        "",
        "## Options",
        "",
        *_table(options),
        "",
        "## Made with",
        "",
        *_table(environment),
        "",
        "## Licence",
        "",
        LICENSE,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _table(values: dict[str, Any], skip: tuple[str, ...] = ()) -> list[str]:
    rows = [f"| {name} | {_shown(value)} |" for name, value in values.items() if name not in skip]
    return ["| | |", "|-|-|", *rows] if rows else ["Nothing is known of it."]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        told = {name: inner for name, inner in value.items() if inner not in (0, "", [])}
        text = ", ".join(f"{name} {_shown(inner)}" for name, inner in told.items())
    elif isinstance(value, list):
        text = ("; " if any(isinstance(v, dict) for v in value) else ", ").join(map(_shown, value))
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")
