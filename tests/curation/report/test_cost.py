import pytest

from granary.curation.report.cost import ASSUMPTIONS, projection
from granary.curation.report.page import cost_section


def facts(items, *stages):
    rows = [{"stage": name, "units": units, "of": of, "rows": 1, "seconds": s} for name, units, of, s in stages]
    return {"flow": [{"in": items}], "stages": rows}


def test_stages_grow_with_the_files_and_the_join_with_their_square():
    rows = projection(facts(100_000, ("pool", 10, 10, 50.0), ("join", 4, 4, 2.0)))
    assert rows[0]["seconds"] == pytest.approx([500, 50_000, 500_000])
    assert rows[1]["seconds"] == pytest.approx([200, 2e6, 2e8])
    assert rows[2] == {"stage": "all", "seconds": pytest.approx([700, 2_050_000, 200_500_000])}


def test_a_resumed_stage_counts_whole():
    assert projection(facts(10**6, ("pool", 5, 20, 10.0)))[0]["seconds"][0] == pytest.approx(40)


def test_a_small_run_does_not_pretend_to_know_the_join():
    rows = projection(facts(300, ("pool", 1, 1, 1.0), ("join", 1, 1, 0.5)))
    assert rows[1]["seconds"] == [None] * 3
    assert rows[-1]["seconds"] == [None] * 3


def test_an_empty_run_has_no_projection():
    assert projection({"flow": [], "stages": []}) == []
    assert projection(facts(0)) == []


def test_the_section_states_peaks_and_assumptions():
    page = cost_section(facts(100_000, ("<pool>", 10, 10, 50.0)) | {"stages": [
        {"stage": "<pool>", "units": 10, "rows": 9, "seconds": 50.0, "workers": None, "peak_mb": 812.4}
    ]})  # fmt: skip
    assert "812 MB" in page
    assert "&lt;pool&gt;" in page
    assert "6 days" in page  # 500,000 s for 10^9 files
    assert all(text in page for text in ASSUMPTIONS)
