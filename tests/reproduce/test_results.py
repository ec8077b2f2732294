import pytest

from gridvlp.reproduce.results import markdown, summarize, verdict
from gridvlp.reproduce.tables import Claim


def row(scores, **more):
    return {"paper": {}, "scores": {"vqa": dict(enumerate(scores))}, "not run": [], **more}


def judge(one, other, **options):
    rows = {"a": row(one), "b": row(other)}
    results = {"rows": rows, "columns": ["vqa"], "unlabelled": []}
    (found,) = summarize(results, [vars(Claim("a beats b", "a", "b", **options))])
    return found


@pytest.mark.parametrize(
    ("one", "other", "margin", "wanted"),
    [
        ([80, 81, 82], [70, 71, 72], {}, "holds"),
        ([70, 71, 72], [80, 81, 82], {}, "does not hold"),
        ([70, 75, 80], [71, 74, 79], {}, "not clear"),
        ([80], [70], {}, "not clear"),  # one seed has no spread
        ([80, 80.1], [80.5, 80.6], {"loses": 1.0}, "holds"),
        ([80, 80.1], [83, 83.1], {"loses": 1.0}, "does not hold"),
        ([90, 90.1], [80, 80.1], {"loses": 1.0}, "holds"),
        ([80, 80.1], [80.5, 80.6], {"apart": 1.0}, "holds"),
        ([80, 80.1], [83, 83.1], {"apart": 1.0}, "does not hold"),
        ([90, 90.1], [80, 80.1], {"apart": 1.0}, "does not hold"),
        ([80, 81], [80, 81], {"apart": 1.0}, "not clear"),
        ([], [70, 71], {}, "not run"),
    ],
)
def test_a_claim_is_judged_by_the_spread_of_the_seeds(one, other, margin, wanted):
    if not one:
        rows = {"a": {"paper": {}, "scores": {}, "not run": ["gone"]}, "b": row(other)}
        results = {"rows": rows, "columns": ["vqa"], "unlabelled": []}
        (found,) = summarize(results, [vars(Claim("a beats b", "a", "b"))])
    else:
        found = judge(one, other, **margin)
    assert found["verdict"] == wanted


def test_times_are_compared_as_ratios():
    rows = {"a": row([], ms=100.0, mean={}), "b": row([], ms=260.0, mean={})}
    found = verdict(vars(Claim("faster", "a", "b", columns=("ms",))), rows, [])
    assert found == {"verdict": "holds", "columns": {"ms": "2.60 times: holds"}}


@pytest.mark.parametrize(("unlabelled", "wanted"), [([], "not clear"), (["nlvr2"], "holds")])
def test_a_column_without_a_figure_leaves_a_claim_not_clear(unlabelled, wanted):
    results = {
        "rows": {"a": row([80, 81]), "b": row([70, 71])},
        "columns": ["vqa", "nlvr2"],
        "unlabelled": unlabelled,
    }
    (found,) = summarize(results, [vars(Claim("a beats b", "a", "b"))])
    assert found["verdict"] == wanted
    assert ("nlvr2" in found["columns"]) is not bool(unlabelled)


def test_full_scale_shows_the_papers_figures_beside_ours():
    on = {"devices": [], "processor": "abacus", "threads": 3}
    timed = {"date": "today", "commit": "def5678", "machine": on}
    rows = {
        "x50": {
            **row([74, 75]),
            "paper": {"ms": 106, "vqa test-dev": 74.34},
            "ms": 5.0,
            "timed": timed,
        },
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
        "fusion": False,
        "unlabelled": [],
        "unfinished": "2 of 4 runs",
        "stand-ins": {"600x1000": "144x256", 100: 25},
        "lines": {"vqa": {"examples": 1234, "left out": 5}},
        "commits": ["abc1234"],
        "claims": [],
        "weights": {"x50": "mine.pth", "x101": "random"},
        "environment": {"commit": f"{40 * '7'}-dirty"},
    }
    summarize(results, [])
    page = markdown(results)
    assert "|  | ms per photo | vqa | paper: ms per photo | paper: vqa test-dev |" in page
    assert "| x50 | 5.0 | 74.50 ± 0.71 | 106 | 74.34 |" in page
    assert "| x101 | – | – | 153 | 75.18 |" in page
    assert "- x101: gone" in page
    assert "`gridvlp reproduce 2 --scale full`, d, scale full, data: data, seeds 0, 1." in page
    assert "Encoders not trained here: x50 = mine.pth, x101 = random." in page
    assert "**Unfinished: 2 of 4 runs.**" in page
    assert "than the rows say: 144x256 for 600x1000, 25 for 100." in page
    assert "Runs by commit abc1234. Filled by 7777777-dirty." in page
    assert "Scores are of vqa: 1,234 lines, 5 more left out (no photo in the store)." in page
    assert "Times are of full-width encoders on one photo" in page
    assert "Taken today by commit def5678, on abacus (threads: 3)." in page
    assert "Random weights: these scores show that every step runs, and nothing else." in page
    assert "The best epoch" not in page
    page = markdown({**results, "epochs chosen by": ["vqa minival", "nlvr2 dev"]})
    assert (
        "The best epoch of each run was chosen by its score in vqa minival, nlvr2 dev: there these "
        "scores are the best of several."
    ) in page
