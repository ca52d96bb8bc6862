"""The page of `granary view` in a browser: what it shows, and that nothing of a name or caption is obeyed."""

from __future__ import annotations

import chromium
import pools
import pytest
from viewing import Visitor, visiting

HOSTILE = "<img src=x onerror=\"document.title='obeyed'\">"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    files = {f"{name}/{i}.png": pools.picture(i) for i, name in enumerate("aabbbcc")}
    pool = pools.write(
        folder / "pool", files | {"a/again.png": pools.picture(0), f"{HOSTILE[:16]}.png": pools.picture(9)}
    )
    (pool / "b" / "3.txt").write_text(HOSTILE + " a red kite")
    (pool / "b" / "no.png").write_bytes(b"no picture")
    return pools.curate({"pool": pool}, folder / "run", "--pool.labels", "folder")


@pytest.fixture(scope="module")
def tab():
    with chromium.browser() as opened:
        yield opened


@pytest.fixture
def page(curated, tab):
    with visiting(curated.path) as visitor:
        tab.said.clear()
        tab.open(visitor.server.address)
        tab.wait("document.body && document.body.dataset.ready")
        yield tab, visitor
        assert [said for said in tab.said if "picture?row" not in said] == []
        assert tab.js("document.title") == "curated - granary view"


def tick(tab: chromium.Tab, facet: str, value: str) -> None:
    """Click on a value of a facet."""
    tab.js(
        f"""[...document.querySelectorAll('#filters h2')].find((one) => one.textContent === {facet!r})
        .nextElementSibling.querySelectorAll('label').forEach((label) => {{
          if (label.children[1].textContent === {value!r}) label.click();
        }})"""
    )


def counts(tab: chromium.Tab, facet: str) -> dict[str, int]:
    """Return what stands beside the values of a facet."""
    rows = tab.js(
        f"""[...[...document.querySelectorAll('#filters h2')].find((one) => one.textContent === {facet!r})
        .nextElementSibling.querySelectorAll('label')].map((label) =>
          [label.children[1].textContent, +label.children[2].textContent])"""
    )
    return dict(rows)


def test_every_picture_has_its_tile_or_says_why_not(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, visitor = page
    rows = visitor.rows()
    tab.wait(f"document.querySelectorAll('.tile').length === {len(rows)}")
    tab.wait("[...document.images].filter((one) => one.naturalWidth > 0).length === 9")
    tab.wait("document.body.textContent.includes('it cannot be decoded')")
    names = tab.wait("[...document.querySelectorAll('.name')].map((one) => one.textContent.slice(1)).filter(Boolean)")
    assert sorted(names) == sorted(row["uri"] for row in rows)


def test_filters_count_what_they_would_leave(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, visitor = page
    rows = visitor.rows()
    assert tab.js(COUNT) == f"{len(rows)} of {len(rows)}"
    tick(tab, "label", "b")
    of_b = [row for row in rows if row["label"] == "b"]
    assert tab.js(COUNT) == f"{len(of_b)} of {len(rows)}"
    statuses = [row["status"] for row in of_b]
    assert counts(tab, "status") == {status: statuses.count(status) for status in set(statuses)}
    labels = [row["label"] or "(none)" for row in rows]
    assert counts(tab, "label") == {label: labels.count(label) for label in set(labels)}
    tick(tab, "status", "dead")
    assert tab.js(COUNT) == f"1 of {len(rows)}"
    tick(tab, "label", "b")
    assert counts(tab, "label") == {"b": 1}
    tick(tab, "status", "dead")
    assert tab.js(COUNT) == f"{len(rows)} of {len(rows)}"


def test_a_search_and_a_click(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, _ = page
    tab.js("search.value = 'KITE red'; search.dispatchEvent(new Event('input'))")
    tab.wait(f"{COUNT}.startsWith('1 of')")
    tab.js("document.querySelector('.tile').click()")
    tab.wait("detail.textContent.includes('verdict     kept')")
    assert HOSTILE in tab.js("detail.textContent")
    assert tab.js("detail.querySelectorAll('img').length") == 1


def test_what_is_selected_is_saved(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, visitor = page
    tab.js(
        """window.saved = []; HTMLAnchorElement.prototype.click = () => {};
        URL.createObjectURL = (blob) => { blob.text().then((text) => window.saved.push(text)); return '#'; }"""
    )
    tick(tab, "label", "c")
    tab.js("document.getElementById('select-all').click()")
    tick(tab, "label", "c")
    assert tab.js(COUNT).endswith("2 selected")
    tab.js("document.getElementById('export-csv').click()")
    text = tab.wait("window.saved[0] || document.getElementById('problem').textContent")
    ids = [row["id"] for row in visitor.rows() if row["label"] == "c"]
    assert [line.split(",")[0] for line in text.splitlines()] == ["id", *ids]
