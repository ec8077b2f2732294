"""The paper's tables: what each row changes, its figures, and what the paper claims of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A row: what it changes, and the paper's figures (percent; ms on a V100; times faster)."""

    name: str
    paper: dict[str, float] = field(default_factory=dict)
    backbone: str = "x152"
    size: str = "600x1000"
    regions: int | None = None
    grids: int = 100  # random ones, in pre-training
    fresh: bool = False  # fine-tuned without pre-training
    withheld: str | None = None  # the row whose models are scored with all grids zeroed


@dataclass(frozen=True)
class Claim:
    """What the paper says of two rows: one is better, or loses or differs by so little.

    Attributes:
        text: the claim in words.
        better, than: the rows.
        columns: of these scores; None: of all; "ms": less is better.
        loses: points that ``better`` may lie below ``than``.
        apart: points that the two may lie apart.
    """

    text: str
    better: str
    than: str
    columns: tuple[str, ...] | None = None
    loses: float = 0.0
    apart: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper: its columns of scores are ``task split``."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = ("vqa minival", "nlvr2 dev")
    times: bool = False


# The paper's scores of the encoder x152, which several tables have, with grids and with regions.
X152 = {"vqa test-dev": 76.05, "nlvr2 dev": 80.03}
X152_REGIONS = {"vqa test-dev": 75.12, "nlvr2 dev": 79.14}
TABLES = {
    "1": Table(
        "Results on VQA, NLVR2 and GQA",
        (
            Row("ours", {**X152, "nlvr2 test1": 81.11, "gqa testdev": 63.50}),
            Row("ours, without pre-training", fresh=True),
            Row("ours, on regions", X152_REGIONS, regions=100),
            Row("ours, image withheld", withheld="ours"),
        ),
        (
            Claim("Pre-training helps.", "ours", "ours, without pre-training"),
            Claim("Grids do better than regions.", "ours", "ours, on regions"),
            Claim("The answers come from the image.", "ours", "ours, image withheld"),
        ),
        ("vqa minival", "vqa test-dev", "nlvr2 dev", "nlvr2 test1", "gqa testdev"),
    ),
    "2": Table(
        "Image encoders",
        (
            Row("x50", {"ms": 106, "vqa test-dev": 74.34, "nlvr2 dev": 78.01}, backbone="x50"),
            Row("x101", {"ms": 153, "vqa test-dev": 75.18, "nlvr2 dev": 78.95}, backbone="x101"),
            Row("x152", {"ms": 221, **X152}),
            Row("x152 (region)", {"ms": 572, **X152_REGIONS}, regions=100),
        ),
        (
            Claim("x101 is better than x50.", "x101", "x50"),
            Claim("x152 is better than x101.", "x152", "x101"),
            Claim("Grids do better than regions.", "x152", "x152 (region)"),
            Claim("Grids are faster than regions.", "x152", "x152 (region)", columns=("ms",)),
        ),
        times=True,
    ),
    "3": Table(
        "Size of the input",
        (
            Row(
                "448x448",
                {"speed-up": 3, "vqa test-dev": 74.71, "nlvr2 dev": 79.22},
                size="448x448",
            ),
            Row(
                "448x746",
                {"speed-up": 2, "vqa test-dev": 75.64, "nlvr2 dev": 79.72},
                size="448x746",
            ),
            Row("600x1000", {"speed-up": 1, **X152}),
        ),
        (
            Claim("600x1000 is better than 448x746.", "600x1000", "448x746"),
            Claim("448x746 is better than 448x448.", "448x746", "448x448"),
            Claim("448x746 loses at most a point.", "448x746", "600x1000", loses=1.0),
        ),
        times=True,
    ),
    "sampling": Table(
        "Random grids per image in pre-training (footnote 2)",
        (Row("64", grids=64), Row("100", X152), Row("128", grids=128)),
        (
            Claim("64 makes not much difference.", "64", "100", apart=1.0),
            Claim("128 makes not much difference.", "128", "100", apart=1.0),
        ),
    ),
}
