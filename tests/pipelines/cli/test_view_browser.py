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
    blend = pools.resembling(pools.picture(4), 0.97, 50)
    pools.write(pool, {"a/near.png": blend})
    return pools.curate({"pool": pool}, folder / "run", "--pool.labels", "folder", *pools.THRESHOLDS)


@pytest.fixture(scope="module")
def tab():
    with chromium.browser() as opened:
        yield opened


@pytest.fixture
def page(curated, tab):
    decisions = curated.path.parent / "decisions.csv"
    decisions.unlink(missing_ok=True)
    with visiting(curated.path, decisions=str(decisions)) as visitor:
        tab.said.clear()
        tab.open(visitor.server.address)
        tab.wait("document.body && document.body.dataset.ready")
        yield tab, visitor
        assert [said for said in tab.said if "picture?row" not in said] == []
        assert tab.js("document.title") == "curated - granary view"
        assert tab.js("document.getElementById('problem').textContent") == ""


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
    tab.wait("[...document.images].filter((one) => one.naturalWidth > 0).length === 10")
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


def button(tab: chromium.Tab, inside: str, name: str) -> None:
    """Click on a button by its text."""
    tab.js(f"[...document.querySelectorAll('{inside} button')].find((one) => one.textContent === {name!r}).click()")


def drag(tab: chromium.Tab, *corners: tuple[float, float]) -> None:
    """Drag the mouse from corner to corner of the map, given in shares of its sides."""
    box = tab.js("(() => { const b = page.map.over.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()")
    places = [(box[0] + x * box[2], box[1] + y * box[3]) for x, y in corners]
    kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 2), "mouseReleased"]
    for kind, (x, y) in zip(kinds, places, strict=True):
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def test_the_threshold_counts_what_it_would_remove(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, visitor = page
    tab.js("document.querySelector('[data-view=duplicates]').click()")
    tab.wait("document.querySelector('.pair') !== null")
    told = "document.querySelector('.pairs p').dataset.removed"
    assert tab.js(told) == "1"
    move = "slider => { slider.value = %s; slider.dispatchEvent(new Event('input')); }"
    tab.js(f"({move % 0.99})(document.querySelector('input[type=range]'))")
    assert tab.js(told) == "0"
    sides = "[...document.querySelectorAll('.sides > div')].map((one) => one.querySelectorAll('.pair').length)"
    assert tab.js(sides) == [0, 1]
    tab.js(f"({move % 0.95})(document.querySelector('input[type=range]'))")
    assert tab.js(sides) == [1, 0]
    button(tab, ".pair", "not a duplicate")
    tab.wait("document.querySelector('.pair button').disabled")
    (decision,) = visitor.json("decisions")["decisions"]
    uris = {visitor.rows()[decision[side]]["uri"] for side in ("row", "other")}
    assert (decision["decision"], uris) == ("not a duplicate", {"pool/a/near.png", "pool/b/4.png"})


def test_decisions_about_the_selection_are_written_and_counted(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, visitor = page
    tick(tab, "label", "c")
    button(tab, "header", "select all shown")
    button(tab, "header", "drop")
    tab.wait("page.decisions.facet.codes.some((one) => one === 3)")
    assert counts(tab, "decision") == {"drop": 2}
    listed = visitor.json("decisions")["decisions"]
    assert [visitor.rows()[one["row"]]["label"] for one in listed] == ["c", "c"]
    button(tab, "header", "undecide")
    tab.wait("page.decisions.facet.codes.every((one) => one === 0)")
    assert visitor.json("decisions")["decisions"] == []


def test_a_lasso_shows_what_is_inside(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, _ = page
    whole = tab.js(COUNT)
    tab.js("document.querySelector('[data-view=map]').click()")
    tab.wait("document.body.dataset.mapped")
    drag(tab, (0, 0), (0.5, 0), (0.5, 0.5), (0.5, 1), (0, 1), (0, 0.5))
    left = tab.js("[...page.filters.shown]")
    places = tab.js("[...page.map.places].filter((_, at) => at % 2 === 0).map((x) => x === x ? x : null)")
    middle = tab.js("page.map.view.x")
    assert left == [row for row, x in enumerate(places) if x is not None and x < middle]
    assert 0 < len(left) < sum(x is not None for x in places)
    tab.js("page.map.over.dispatchEvent(new MouseEvent('dblclick'))")
    assert tab.js(COUNT) == whole


def test_what_resembles_a_picture_comes_by_its_similarity(page: tuple[chromium.Tab, Visitor]) -> None:
    tab, visitor = page
    number = next(at for at, row in enumerate(visitor.rows()) if row["uri"] == "pool/b/4.png")
    tab.js(f"document.querySelector('.tile[data-row=\"{number}\"]').click()")
    tab.wait("detail.textContent.includes('similar (copy)')")
    button(tab, "#detail", "similar (copy)")
    tab.wait(f"{COUNT}.includes('most similar')")
    assert tab.js("[...page.grid.rows].slice(0, 2)") == visitor.json("similar", row=number, space="copy")["rows"][:2]
    tab.wait("document.querySelectorAll('.tile')[1].textContent.includes('; 0.9')")
