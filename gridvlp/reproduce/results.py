"""What a table's figures say: means, spreads, claims that hold or do not, and the page of it."""

from __future__ import annotations

import statistics
from typing import Any

from gridvlp.run.environment import short_commit

PHOTO = "one photo of 640 x 480 pixels, batch 1; the paper's are of a V100."
TIMES = f"Times are of full-width encoders on {PHOTO}"
TIMES_WITH_FUSION = (
    f"Times are of full-width encoders and the fusion model (BERT-base, all grids) on {PHOTO}"
)


def summarize(results: dict[str, Any], claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add means, spreads and speed-ups to the rows; returns the claims with their verdicts."""
    rows = results["rows"]
    if all("ms" in row and "speed-up" in row["paper"] for row in rows.values()):
        slowest = max(row["ms"] for row in rows.values())
        for row in rows.values():
            row["speed-up"] = round(slowest / row["ms"], 2)
    for row in rows.values():
        row["mean"] = {c: statistics.mean(v.values()) for c, v in row["scores"].items()}
        row["spread"] = {
            c: statistics.stdev(v.values()) if len(v) > 1 else None
            for c, v in row["scores"].items()
        }
    labelled = [c for c in results["columns"] if c not in results["unlabelled"]]
    return [{"claim": claim["text"], **verdict(claim, rows, labelled)} for claim in claims]


def verdict(claim: dict[str, Any], rows: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """What the figures say of a claim, for each column and in all.

    A difference of means counts where it is larger than the two rows' spreads together (the root
    of the sum of squares). A claim holds where it holds in every column; one without a figure, as
    long as some column has one, leaves it not clear.
    """
    one, other = rows[claim["better"]], rows[claim["than"]]
    found = {}
    for column in claim["columns"] or columns:
        if column == "ms":
            if "ms" in one and "ms" in other:
                found[column] = (
                    f"{other['ms'] / one['ms']:.2f} times",
                    "holds" if one["ms"] < other["ms"] else "does not hold",
                )
            continue
        if column not in one.get("mean", {}) or column not in other.get("mean", {}):
            found[column] = ("no figure", "not run")
            continue
        gap = one["mean"][column] - other["mean"][column]
        spreads = [row["spread"][column] for row in (one, other)]
        noise = sum(s**2 for s in spreads if s is not None) ** 0.5
        # by how many points the claim holds
        more = gap + claim["loses"] if claim["apart"] is None else claim["apart"] - abs(gap)
        word = "holds" if more > 0 else "does not hold"
        if None in spreads or abs(more) <= noise:
            word = "not clear"
        told = f"{gap:+.2f}" + ("" if None in spreads else f" ± {noise:.2f}")
        found[column] = (told, word)
    words = {word for _, word in found.values()}
    whole = next((w for w in ("does not hold", "not clear", "holds") if w in words), "not run")
    if whole == "holds" and "not run" in words:
        whole = "not clear"
    return {"verdict": whole, "columns": {c: f"{t}: {w}" for c, (t, w) in found.items()}}


def markdown(results: dict[str, Any]) -> str:
    """The results as a page: figures, the paper's beside them, the claims, what was not run."""
    rows, full = results["rows"], results["scale"] == "full"
    extra = [c for c in ("ms", "speed-up") if any(c in row for row in rows.values())]
    columns = [*extra, *results["columns"]]
    known = dict.fromkeys(c for row in rows.values() for c in row["paper"])
    shown = [c for c in known if full or c in extra]  # of other data none compares
    titles = {"ms": "ms per photo, with fusion" if results["fusion"] else "ms per photo"}
    header = [titles.get(c, c) for c in columns]
    header += [f"paper: {'ms per photo' if c == 'ms' else c}" for c in shown]
    seeds = ", ".join(map(str, results["seeds"]))
    about = (
        f"`{results['command']}`, {results['date']}, scale {results['scale']}, data: "
        f"{results['data']}, seeds {seeds}. Scores in percent, mean ± standard deviation over the "
        "seeds that have run."
    )
    if results["weights"]:
        given = ", ".join(f"{name} = {path}" for name, path in results["weights"].items())
        about += f" Encoders not trained here: {given}."
    if "random" in results["weights"].values():
        about += " Random weights: these scores show that every step runs, and nothing else."
    if results["commits"]:
        about += f" Runs by commit {', '.join(results['commits'])}."
    if filled := short_commit(results["environment"]):
        about += f" Filled by {filled}."
    if results["stand-ins"]:
        told = ", ".join(f"{one} for {whole}" for whole, one in results["stand-ins"].items())
        about += f" Models are small, and trained on less than the rows say: {told}."
    lines = [
        f"# Table {results['table']}: {results['title']}",
        "",
        *([f"**Unfinished: {results['unfinished']}.**", ""] if results["unfinished"] else []),
        about,
        "",
        "| " + " | ".join(["", *header]) + " |",
        "|-" * (len(header) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [_cell(row, column, len(results["seeds"])) for column in columns]
        papers = [f"{row['paper'][c]:g}" if c in row["paper"] else "–" for c in shown]
        lines.append("| " + " | ".join([name, *cells, *papers]) + " |")
    counts = [
        f"{column}: {n['examples']:,} lines"
        + (f", {n['left out']:,} more left out (no photo in the store)" if n["left out"] else "")
        for column, n in results["lines"].items()
    ]
    if counts:
        lines += ["", f"Scores are of {'; '.join(counts)}."]
    if by := results.get("epochs chosen by"):
        lines += [
            "",
            f"The best epoch of each run was chosen by its score in {', '.join(by)}: there these "
            "scores are the best of several.",
        ]
    if timed := [row["timed"] for row in rows.values() if "timed" in row]:
        taken = ", ".join(sorted({f"{t['date']} by commit {t['commit']}" for t in timed}))
        on = timed[0]["machine"]
        machine = ", ".join(on["devices"]) or f"{on['processor']} (threads: {on['threads']})"
        about_times = TIMES_WITH_FUSION if results["fusion"] else TIMES
        lines += ["", f"{about_times} Taken {taken}, on {machine}."]
    if full and "vqa minival" in columns:
        lines += ["", "The paper's VQA scores are of test-dev, whose labels only the server has."]
    lines += ["", "| claim | here | by column |", "|-|-|-|"]
    for claim in results.get("claims", []):
        told = "; ".join(f"{column} {text}" for column, text in claim["columns"].items()) or "–"
        lines.append(f"| {claim['claim']} | {claim['verdict']} | {told} |")
    missing = [(name, why) for name, row in rows.items() for why in row["not run"]]
    if missing:
        lines += ["", "Not run:", "", *(f"- {name}: {why}" for name, why in missing)]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], column: str, seeds: int) -> str:
    if column in row:
        return f"{row[column]:.1f}" if column == "ms" else f"{row[column]:.2f}"
    if column not in row.get("mean", {}):
        return "–"
    spread, ran = row["spread"][column], len(row["scores"][column])
    text = f"{row['mean'][column]:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")
    return text + (f" ({ran} of {seeds} seeds)" if ran < seeds else "")
