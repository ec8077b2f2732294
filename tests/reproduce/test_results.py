import pytest

from gridvlp.reproduce.results import markdown, summarize, verdict
from gridvlp.reproduce.tables import Claim


def row(scores, **more):
    return {"paper": {}, "scores": {"vqa": dict(enumerate(scores))}, "not run": [], **more}


def judge(one, other, **options):
    results = {"rows": {"a": row(one), "b": row(other)}, "columns": ["vqa"]}
    (found,) = summarize(results, [vars(Claim("a beats b", "a", "b", **options))])
    return found


@pytest.mark.parametrize(
    ("one", "other", "within", "wanted"),
    [
        ([80, 81, 82], [70, 71, 72], None, "holds"),
        ([70, 71, 72], [80, 81, 82], None, "does not hold"),
        ([70, 75, 80], [71, 74, 79], None, "not clear"),
        ([80], [70], None, "not clear"),  # one seed has no spread
        ([80, 80.1], [80.5, 80.6], 1.0, "holds"),
        ([80, 80.1], [83, 83.1], 1.0, "does not hold"),
        ([], [70, 71], None, "not run"),
    ],
)
def test_a_claim_is_judged_by_the_spread_of_the_seeds(one, other, within, wanted):
    if not one:
        rows = {"a": {"paper": {}, "scores": {}, "not run": ["gone"]}, "b": row(other)}
        results = {"rows": rows, "columns": ["vqa"]}
        (found,) = summarize(results, [vars(Claim("a beats b", "a", "b"))])
    else:
        found = judge(one, other, within=within)
    assert found["verdict"] == wanted


def test_times_are_compared_as_ratios():
    rows = {"a": row([], ms=100.0, mean={}), "b": row([], ms=260.0, mean={})}
    found = verdict(vars(Claim("faster", "a", "b", columns=("ms",))), rows, [])
    assert found == {"verdict": "holds", "columns": {"ms": "2.60 times: holds"}}


def test_full_scale_shows_the_papers_figures_beside_ours():
    rows = {
        "x50": {**row([74, 75]), "paper": {"ms": 106, "vqa test-dev": 74.34}, "ms": 5.0},
        "x101": {
            **row([]),
            "paper": {"ms": 153, "vqa test-dev": 75.18},
            "scores": {},
            "not run": ["gone"],
        },
    }
    results = {
        "table": "2",
        "title": "t",
        "command": "gridvlp reproduce 2 --scale full",
        "scale": "full",
        "date": "d",
        "data": "data",
        "seeds": [0, 1],
        "columns": ["vqa"],
        "rows": rows,
        "times": None,
        "claims": [],
        "weights": {"x50": "mine.pth", "x101": "random"},
        "environment": {"commit": None},
    }
    summarize(results, [])
    page = markdown(results)
    assert "|  | ms per photo | vqa | paper: ms per photo | paper: vqa test-dev |" in page
    assert "| x50 | 5.0 | 74.50 ± 0.71 | 106 | 74.34 |" in page
    assert "| x101 | – | – | 153 | 75.18 |" in page
    assert "- x101: gone" in page
    assert "`gridvlp reproduce 2 --scale full`, d, scale full, data: data, seeds 0, 1." in page
    assert "Encoders not trained here: x50 = mine.pth, x101 = random." in page
    assert "Random weights: these scores show that every step runs, and nothing else." in page
