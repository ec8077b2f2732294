import re
from pathlib import Path

import pytest

from gridvlp.reproduce.tables import TABLES

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"


@pytest.mark.parametrize("name", TABLES)
def test_tables_speak_of_rows_that_they_have(name):
    table = TABLES[name]
    rows = {row.name for row in table.rows}
    assert {r for claim in table.claims for r in (claim.better, claim.than)} <= rows
    assert {row.withheld for row in table.rows} - {None} <= rows
    for row in table.rows:
        assert row.paper.keys() <= {*table.columns, "vqa test-dev", "ms", "speed-up"}


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's text is not beside the checkout")
def test_the_papers_figures_are_the_papers():
    text = next(PAPER.glob("*.txt")).read_text()
    for row in TABLES["2"].rows:
        ms, vqa, nlvr2 = (row.paper[name] for name in ("ms", "vqa test-dev", "nlvr2 dev"))
        assert f"{row.name} {ms:g} {vqa:.2f} {nlvr2:.2f}" in text
    for row in TABLES["3"].rows:
        scores = f"{row.paper['vqa test-dev']:.2f} {row.paper['nlvr2 dev']:.2f}"
        faster = "-" if row.paper["speed-up"] == 1 else f"{row.paper['speed-up']:g}x"
        assert f"{row.name.replace('x', ' ')} {faster} {scores}" in text
    ours, _, regions, _ = TABLES["1"].rows
    (line,) = re.findall(r"Our Model Grid-VLP 110M (.*)", text)
    vqa, _, dev, test, gqa, _ = map(float, line.split())
    columns = ("vqa test-dev", "nlvr2 dev", "nlvr2 test1", "gqa testdev")
    assert ours.paper == dict(zip(columns, (vqa, dev, test, gqa), strict=True))
    assert regions.paper.items() <= TABLES["2"].rows[-1].paper.items()
    assert TABLES["sampling"].rows[1].paper == {"vqa test-dev": vqa, "nlvr2 dev": dev}
