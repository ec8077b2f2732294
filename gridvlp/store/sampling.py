"""Which rows of a map make a random sample, so that few chunks are read for it."""

from __future__ import annotations

import numpy as np

LEAST_CHUNKS = 5  # from fewer, grids of different chunks would seldom or never meet in a sample


def sampled_rows(count: int, n: int, chunk_rows: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` of a map's ``count`` stored rows, ascending; each equally likely.

    Draws whole chunks, at least LEAST_CHUNKS, whose rows are a random subset of the image, and from
    these rows the sample. The short chunk at the end is among them with the probability that makes
    its rows as likely as the others.
    """
    whole, short = divmod(count, chunk_rows)
    least = max(n, LEAST_CHUNKS * chunk_rows)
    if least > whole * chunk_rows:
        return np.sort(rng.choice(count, min(n, count), replace=False))
    with_short = -(-(least - short) // chunk_rows)  # whole chunks drawn beside the short one
    drawn = -(-least // chunk_rows)
    chunks = []
    if short and rng.integers(count) < with_short * chunk_rows + short:
        drawn, chunks = with_short, [np.arange(whole * chunk_rows, count)]
    for chunk in rng.choice(whole, drawn, replace=False):
        chunks.append(np.arange(chunk * chunk_rows, (chunk + 1) * chunk_rows))
    rows = np.concatenate(chunks)
    return np.sort(rng.choice(rows, n, replace=False))
