"""Training steps of the fusion model with plain against fused attention, side by side.

    python benchmarks/attention.py
    python benchmarks/attention.py --grids 608 --hidden-size 768 --layers 12 --heads 12 --batch 4

Prints sentences per second of both, alternating, and their ratio. The input is random; nothing is
read.
"""

from __future__ import annotations

import statistics
import time

import click
import torch

from gridvlp.train.allocator import keep_freed_memory
from gridvlp.train.model.bert_layers import FUSED, PLAIN
from gridvlp.train.model.fusion import GridVLPConfig, GridVLPForAnswering


@click.command(context_settings={"show_default": True})
@click.option("--text", default=12, help="Text tokens.")
@click.option("--grids", default=32, help="Grids of an image.")
@click.option("--channels", default=512, help="Channels of a grid.")
@click.option("--hidden-size", default=128, help="Width of the encoder.")
@click.option("--layers", default=3, help="Layers of the encoder.")
@click.option("--heads", default=4, help="Attention heads.")
@click.option("--batch", default=64, help="Sentences per step.")
@click.option("--steps", default=10, help="Steps per round.")
@click.option("--rounds", default=5, help="Rounds; the median counts.")
def main(
    text: int, grids: int, channels: int, hidden_size: int, layers: int, heads: int, batch: int,
    steps: int, rounds: int,
) -> None:  # fmt: skip
    """Time both."""
    torch.manual_seed(0)
    keep_freed_memory()
    config = GridVLPConfig(
        vocab_size=1000,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        grid_channels=channels,
        answers=["yes", "no"],
    )
    model = GridVLPForAnswering(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    inputs = {
        "input_ids_BL": torch.randint(5, 1000, (batch, text)),
        "text_mask_BL": torch.ones(batch, text, dtype=torch.bool),
        "grids_IGC": torch.rand(batch, grids, channels),
        "grid_mask_IG": torch.arange(grids) < torch.randint(grids // 2, grids + 1, (batch, 1)),
    }

    def rate(kind: str) -> float:
        model.set_attn_implementation(kind)
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16):
                logits_BA = model(inputs)
            logits_BA.float().logsumexp(-1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return steps * batch / (time.perf_counter() - start)

    rate(PLAIN), rate(FUSED)
    rates = {PLAIN: [], FUSED: []}
    for _ in range(rounds):
        for kind, found in rates.items():
            found.append(rate(kind))
    plain, fused = (statistics.median(found) for found in rates.values())
    click.echo(
        f"{text} + {grids} tokens, {layers} x {hidden_size}, batch {batch}, bfloat16, "
        f"{torch.get_num_threads()} threads: plain {plain:.0f}, fused {fused:.0f} sentences/s, "
        f"ratio {plain / fused:.2f}"
    )


if __name__ == "__main__":
    main()
