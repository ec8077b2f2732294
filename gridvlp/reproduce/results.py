"""What a table's figures say: means, spreads, claims that hold or do not, and the page of it."""

from __future__ import annotations

import statistics
from typing import Any

TITLES = {"ms": "ms per photo", "speed-up": "speed-up"}


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
    return [
        {"claim": claim["text"], **verdict(claim, rows, results["columns"])} for claim in claims
    ]


def verdict(claim: dict[str, Any], rows: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """What the figures say of a claim, for each column and in all.

    A difference of means counts where it is larger than the two rows' spreads together (the root
    of the sum of squares). A claim holds where it holds in every column.
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
            continue
        gap = one["mean"][column] - other["mean"][column]
        spreads = [row["spread"][column] for row in (one, other)]
        noise = sum(s**2 for s in spreads if s is not None) ** 0.5
        least = -claim["within"] if claim["within"] is not None else 0.0
        word = "not clear" if None in spreads or abs(gap - least) <= noise else ""
        word = word or ("holds" if gap > least else "does not hold")
        told = f"{gap:+.2f}" + ("" if None in spreads else f" ± {noise:.2f}")
        found[column] = (told, word)
    words = {word for _, word in found.values()}
    whole = next((w for w in ("does not hold", "not clear", "holds") if w in words), "not run")
    return {"verdict": whole, "columns": {c: f"{t}: {w}" for c, (t, w) in found.items()}}


def markdown(results: dict[str, Any]) -> str:
    """The results as a page: figures, the paper's beside them, the claims, what was not run."""
    rows, full = results["rows"], results["scale"] == "full"
    extra = [c for c in ("ms", "speed-up") if any(c in row for row in rows.values())]
    columns = [*extra, *results["columns"]]
    known = dict.fromkeys(c for row in rows.values() for c in row["paper"])
    shown = [c for c in known if full or c in extra]  # of other data none compares
    header = [*(TITLES.get(c, c) for c in columns), *(f"paper: {TITLES.get(c, c)}" for c in shown)]
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
    if results["environment"]["commit"]:
        about += f" Commit {results['environment']['commit'][:7]}."
    lines = [
        f"# Table {results['table']}: {results['title']}",
        "",
        about,
        "",
        "| " + " | ".join(["", *header]) + " |",
        "|-" * (len(header) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [_cell(row, column, len(results["seeds"])) for column in columns]
        papers = [f"{row['paper'][c]:g}" if c in row["paper"] else "–" for c in shown]
        lines.append("| " + " | ".join([name, *cells, *papers]) + " |")
    if results["times"]:
        lines += ["", results["times"]]
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
