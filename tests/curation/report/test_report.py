from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
import re
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b, sha256
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from granary.curation.images.filters import Filters
from granary.curation.images.limits import DecodeLimits
from granary.curation.report import RunView, build_report, contact_sheet
from granary.curation.report.charts import bands, curve, discrepancies, totals
from granary.curation.report.survey import Groups, Smallest, Survey, generalise, locate, rank
from granary.curation.report.thumbnails import Thumbnails
from granary.curation.steps.doubtful import Doubtful, Pair
from granary.curation.store.schema import CURATED_LEDGER, QUALITY

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uri", "id", "sha256", "role", "status", "stage", "reason")),
        *((name, pa.string()) for name in ("representative", "component", "leaked_reference", "leak_path")),
        *((name, pa.float32()) for name in ("similarity", "tightness")),
        ("seed_ids", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
        ("cluster", pa.int32()),
    ]
)
HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(2)</script>",
    "' onload='alert(3)",
    '"><iframe src="http://x.invalid">',
    "</style></title><svg/onload=alert(4)>",
    "\u202egnp.exe",
    "{{ 7 * 7 }}{% raw %}",
]
STAGES = ("decode", "filter", "exact", "dedup", "leaks", "retrieval", "shards")


def picture(number: int, side: int = 48) -> bytes:
    """A smooth colour pattern that differs from number to number."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def row(uri: str, status: str = "kept", stage: str = "shards", **evidence: Any) -> dict[str, Any]:
    digest = sha256(uri.encode()).hexdigest()
    known = {"uri": uri, "id": digest[:32], "sha256": digest, "role": "pool"}
    return {**dict.fromkeys(SCHEMA.names), **known, "status": status, "stage": stage, **evidence}


def identity(uri: str) -> str:
    return sha256(uri.encode()).hexdigest()[:32]


class Run:
    """A plausible run: rows of a ledger, the counters that belong to them, generated pictures."""

    def __init__(self, rows: list[dict[str, Any]], files: dict[str, bytes] | None = None, **summary: Any):
        self.rows = rows
        self.files = files or {}
        self.summary = {"name": "a run", "created": "2026-01-02T03:04:05", "flow": flow(rows)} | summary

    def view(self, tables: int = 3) -> RunView:
        def ledger() -> Iterator[pa.Table]:
            cuts = np.linspace(0, len(self.rows), tables + 1).astype(int)
            for start, stop in itertools.pairwise(cuts):
                yield pa.Table.from_pylist(self.rows[start:stop], SCHEMA)

        seeds = {identity(uri): uri for uri in self.files if uri.startswith("seeds/")}
        return RunView(self.summary, "pool: DIR\n", ledger, self.files.__getitem__, seeds.get)

    def report(self, tables: int = 3) -> str:
        return build_report(self.view(tables))


def flow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ended = Counter((r["stage"], r["status"]) for r in rows if r["role"] == "pool")
    entering, stages = sum(ended.values()), []
    for stage in STAGES:
        dropped, dead = ended[stage, "dropped"], ended[stage, "dead"]
        kept = entering - dropped - dead
        stages.append({"stage": stage, "in": entering, "kept": kept, "dropped": dropped, "dead": dead})
        entering = kept
    return stages


@functools.cache
def plausible() -> Run:
    rows, files = [], {}
    for i in range(90):
        uri = f"pool/kept/{i:03}.png"
        files[uri] = picture(i)
        seeds = [identity(f"seeds/{j}.png") for j in ((i % 4), 4 + i % 3)]
        rows.append(row(uri, seed_ids=seeds, similarities=[0.9 - i / 500, 0.8 - i / 500], cluster=i % 5))
    for j in range(7):
        files[f"seeds/{j}.png"] = picture(1000 + j)
    for i in range(20):
        representative, uri = f"pool/kept/{i // 4:03}.png", f"pool/near/{i:03}.png"
        files[uri] = picture(i // 4, side=40)
        near = {"component": f"{i // 4:032x}", "representative": identity(representative)}
        cosines = {"similarity": 0.99 - i / 100, "tightness": 0.96 - (i // 4) / 25}
        rows.append(row(uri, "dropped", "dedup", **near, **cosines))
    for i in range(5):
        files[f"pool/leak/{i}.png"], files[f"references/{i}.png"] = picture(2000 + i), picture(2000 + i, 64)
        leak = {"similarity": 0.5 + i / 10, "leaked_reference": f"references/{i}.png"}
        path = "pool/kept/000.png" if i == 4 else None
        rows.append(row(f"pool/leak/{i}.png", "dropped", "leaks", leak_path=path, **leak))
    for i in range(6):
        uri = f"pool/small/{i}.png"
        files[uri] = picture(3000 + i, 8)
        rows.append(row(uri, "dropped", "filter", reason=f"shorter side {i + 3} px is below 32"))
    for i in range(40):
        rows.append(row(f"pool/far/{i}.png", "dropped", "retrieval", reason="retrieved by no seed"))
    broken = {"reason": "TruncatedImage: ends after 12 bytes", "id": None}
    rows.append(row("pool/broken.png", "dead", "decode", **broken))
    rows.append(row("seeds/0.png", role="seed"))
    return Run(
        rows,
        files,
        versions={"granary": "0.1.0"},
        order="hash",
        sources=[{"role": "pool", "name": "web", "kind": "folder", "files": 162, "dead": 1}],
        stages=[{"stage": "pool", "units": 4, "rows": 162, "seconds": 3.2, "workers": 2}],
        retrieval=[{"set": "seeds", "mode": "sample", "seeds": 7, "retrievals": 180, "distinct": 90}],
        thresholds={"dedup": 0.6, "leaks": 0.45},
        removed_at=[[0.6, 20], [0.8, 18], [0.9, 9], [0.95, 4]],
        notes=["one note"],
        leak_audit=[{"reference": "val", "highest_similarity": 0.449}],
    )


class Page(HTMLParser):
    """The elements, attributes and text of a page as a browser's parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.stack: list[str] = []
        self.sections: dict[str, list[str]] = {}
        self._section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        self.sections.setdefault(self._section, []).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def section(self, name: str) -> str:
        return " ".join(" ".join(self.sections[name]).split())


def assert_self_contained(html: str) -> Page:
    page = Page(html)
    assert page.stack == []
    assert not page.tags.keys() & {"script", "link", "iframe", "object", "base", "form", "embed"}
    assert not [a for a in page.attributes if a[1].startswith("on")]
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith(("data:image/jpeg;base64,", "#"))
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    return page


def test_the_report_shows_every_part_of_a_plausible_run():
    page = assert_self_contained(plausible().report())
    assert "90 kept + 71 dropped + 1 unreadable = 162 files of the pool" in page.text
    assert "do not add up" not in page.text
    assert "1 seed image is in the dataset as it is" in page.text
    assert "64 of 90 kept images" in page.section("kept")
    assert "5 images, tightness 0.800" in page.section("duplicates")
    assert "4 direct" in page.section("leaks")
    assert "1 through another image" in page.section("leaks")
    assert "val 0.449" in page.section("leaks")
    assert "seeds sample 7 180 90 2.00" in page.section("retrieval")
    assert "Cluster 0: 18 kept" in page.section("clusters")
    assert "6 at filter: shorter side … px is below …" in page.section("dropped")
    assert "1 decode TruncatedImage" in page.section("unreadable")
    assert "ends after 12 bytes" in page.section("unreadable")
    assert "162 2 – 3.2 s 50.6" in page.section("stages")
    assert f"granary explain RUN {identity('pool/leak/0.png')}" in page.section("recipe")


def test_components_come_loosest_first_with_the_least_similar_member_first():
    survey = Survey(plausible().view().ledger, seed=0)
    located = locate(plausible().view().ledger, survey)
    assert [c.id for c in located.components] == [f"{i:032x}" for i in (4, 3, 2, 1, 0)]
    assert {c.size for c in located.components} == {5}
    worst = [r["similarity"] for r in located.components[0].members.rows()]
    assert worst == sorted(worst)
    assert located.uris[identity("pool/kept/004.png")] == "pool/kept/004.png"


def test_components_of_equal_tightness_come_largest_first():
    tied = {"tightness": 0.7, "similarity": 0.7, "representative": "r"}
    rows = [
        row(f"{c}-{i}", "dropped", "dedup", component=f"{c:02}", **tied)
        for c in range(40)
        for i in range(1 + (c * 7) % 40)
    ]
    view = Run(rows).view()
    sizes = [c.size for c in locate(view.ledger, Survey(view.ledger, 0)).components]
    assert sizes == list(range(41, 29, -1))


def test_strips_hold_exactly_what_the_chosen_seeds_retrieved():
    random = np.random.default_rng(5)
    rows = []
    truth: dict[str, list[tuple[float, str]]] = {}
    for i in range(400):
        seeds = [f"seed{s}" for s in random.choice(60, 3, replace=False)]
        cosines = random.random(3).astype(np.float32).tolist()
        rows.append(row(f"pool/{i}", seed_ids=seeds, similarities=cosines))
        for seed, cosine in zip(seeds, cosines, strict=True):
            truth.setdefault(seed, []).append((-cosine, f"pool/{i}"))
    strips = Survey(Run(rows).view().ledger, seed=3).strips.items()
    assert [s for s, _ in strips] == sorted(truth, key=lambda s: rank(3, s))[:12]
    for seed, images in strips:
        assert images.count == len(truth[seed])
        assert [r["uri"] for r in images.rows()] == [uri for _, uri in sorted(truth[seed])[:7]]


def test_the_weakest_retrievals_are_images_whose_nearest_seed_is_farthest():
    random = np.random.default_rng(6)
    rows, truth = [row("pool/by-cluster", seed_ids=["a"], similarities=[])], []
    for i in range(200):
        seeds, cosines = ["a", "b", "c"], random.random(3).astype(np.float32).tolist()
        rows.append(row(f"pool/{i}", seed_ids=seeds, similarities=cosines))
        truth.append((max(cosines), f"pool/{i}", seeds[cosines.index(max(cosines))]))
    weakest = Survey(Run(rows).view().ledger, seed=3).weakest
    assert weakest.count == 200
    assert [(r["similarity"], r["uri"], r["seed_id"]) for r in weakest.rows()] == sorted(truth)[:9]


def test_the_choice_ignores_the_order_of_the_ledger_and_its_tables():
    run = plausible()
    shuffled = Run([run.rows[i] for i in np.random.default_rng(0).permutation(len(run.rows))], run.files)
    shuffled.summary = run.summary
    assert shuffled.report(tables=1) == run.report(tables=7)


def test_another_seed_draws_another_sample():
    rows = [row(f"pool/{i}") for i in range(500)]
    drawn = [[r["uri"] for r in Survey(Run(rows).view().ledger, seed).kept.rows()] for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    keys = {r["uri"]: blake2b(f"report/1/{r['id']}".encode(), digest_size=8).digest() for r in rows}
    assert drawn[0] == sorted(keys, key=keys.__getitem__)[:64]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(text):
    near = {"component": text, "tightness": 0.9, "representative": identity("pool/other"), "similarity": 0.9}
    leak = {"similarity": 0.5, "leaked_reference": f"references/{text}", "leak_path": f"pool/{text}"}
    rows = [
        row(f"pool/{text}", seed_ids=[text], similarities=[0.5], cluster=1),
        row(f"pool/near/{text}", "dropped", "dedup", **near),
        row(f"pool/leak/{text}", "dropped", "leaks", **leak),
        row(f"pool/dropped/{text}", "dropped", "filter", reason=text),
        row(f"pool/dead/{text}", "dead", "decode", reason=f"{text}: {text}", id=None),
        row("pool/dead", "dead", text, reason=text),
    ]
    run = Run(rows, name=text, created=text, kind=text, notes=[text], versions={text: text}, order=text)
    run.summary["sources"] = [{"role": text, "name": text, "kind": text, "files": 1, "dead": 0}]
    run.summary["stages"] = [{"stage": text, "units": 1, "rows": 1, "seconds": 1.0, "workers": text}]
    run.summary["retrieval"] = [{"set": text, "mode": text, "seeds": 1, "retrievals": 1, "distinct": 1}]
    run.summary["thresholds"] = {"dedup": text, "leaks": text}
    run.summary["flow"].append({"stage": text, "in": 1, "kept": 1, "dropped": 1, "dead": 0})
    run.summary["removed_at"] = [[0.5, 1], [0.6, 0]]
    view = run.view()
    near = Doubtful([Pair(f"pool/{text}", text, 0.9)], [Pair(text, text, 0.8)], [(0.5, 1), (0.6, 0)], text)
    view = dataclasses.replace(view, recipe=text, seed_uri=lambda _: f"seeds/{text}/1.png", doubtful=near)
    page = assert_self_contained(build_report(view))
    for section in ("flow", "duplicates", "leaks", "retrieval", "dropped", "unreadable", "stages", "recipe"):
        shown = generalise(text) if section == "dropped" else text
        assert shown in page.section(section), section


def test_a_run_without_seeds_duplicates_leaks_or_losses_says_so():
    rows = [row(f"pool/{i}.png") for i in range(3)]
    run = Run(rows, {f"pool/{i}.png": picture(i) for i in range(3)})
    run.summary["flow"] = [s for s in flow(rows) if s["stage"] not in ("retrieval", "leaks")]
    run.summary["sources"] = [{"role": "pool", "name": "web", "kind": "folder", "files": 3, "dead": 0}]
    page = assert_self_contained(run.report())
    assert "No near duplicates were removed." in page.text
    assert "No reference set was given" in page.text
    assert "No seed set was given" in page.text
    assert "Every file was read." in page.text
    assert "do not add up" not in page.text


def test_doubtful_pairs_stand_on_both_sides_of_the_threshold_or_the_page_says_why_not():
    run = plausible()
    below = [(0.5, 40), (0.55, 30)]
    near = Doubtful([Pair("pool/kept/000.png", "pool/near/000.png", 0.61)], [], below)
    view = dataclasses.replace(run.view(), doubtful=near)
    text = assert_self_contained(build_report(view)).section("duplicates")
    assert "linked 0.610" in text
    assert "No pair lies within 0.1 below it." in text
    assert "similarity above removed 0.5 40 0.55 30 0.6 20 0.8 18" in text
    drawn = curve([*below, *run.summary["removed_at"]], 0.6)
    assert drawn is not None
    assert drawn.threshold == next(x for x, _, said in drawn.points if said == "20 removed above 0.6")
    far = dataclasses.replace(run.view(), doubtful=Doubtful([], [], [], "not looked for, as it is large"))
    text = assert_self_contained(build_report(far)).section("duplicates")
    assert "No pair is above it." in text
    assert "Pairs below it were not looked for, as it is large." in text


def test_a_seed_is_shown_with_the_folder_of_its_class():
    identity = "f" * 32
    run = Run([row("pool/1.png", seed_ids=[identity], similarities=[0.9])], {"seeds/cat/1.png": picture(1)})
    view = dataclasses.replace(run.view(), seed_uri=lambda _: "seeds/cat/1.png")
    assert "seed cat" in assert_self_contained(build_report(view)).section("retrieval")


def test_quality_is_counted_on_both_sides_of_each_limit_and_the_worst_come_first():
    """Against the ledger itself, in whatever tables it comes; a ledger without measures has no such section."""
    random, schema = np.random.default_rng(4), CURATED_LEDGER
    rows = [
        {
            **row(f"pool/{i:03}"),
            "blur": float(np.float32(10 ** random.uniform(0, 4))),
            "dark": int(random.integers(0, 256)),
            "bright": int(random.integers(0, 256)),
            "entropy": float(np.float32(random.uniform(0, 8))),
            "width": int(random.integers(8, 900)),
            "height": int(random.integers(8, 900)),
        }
        for i in range(300)
    ]
    rows[7]["blur"] = float("inf")
    dead = {**row("pool/dead", "dead", "decode", reason="TypeError: what", id=None), **dict.fromkeys(QUALITY.names)}
    seed = {**rows[0], "uri": "seeds/0", "role": "seed"}
    filters = Filters(blur=300, max_aspect=2)
    tables = [pa.Table.from_pylist(part, schema) for part in (rows[:40], [*rows[40:], dead, seed])]
    survey = Survey(lambda: iter(tables), 0, filters)
    found = {spread.measure.name: spread for spread in survey.looks.spreads}
    for name, value, low, limit in (
        ("blur", lambda r: r["blur"], True, 300),
        ("dark", lambda r: r["dark"], True, 100),
        ("bright", lambda r: r["bright"], False, 160),
        ("entropy", lambda r: r["entropy"], True, 4),
        ("size", lambda r: min(r["width"], r["height"]), True, 64),
        ("aspect", lambda r: max(r["width"], r["height"]) / min(r["width"], r["height"]), False, 2),
    ):
        spread = found[name]
        values = sorted((value(r) if low else -value(r), r["uri"]) for r in rows)
        assert spread.total == 300
        assert spread.beyond == sum(v < (limit if low else -limit) for v, _ in values)
        assert [uri for _, uri in spread.worst] == [uri for _, uri in values[:8]]
        assert sum(int(bar.text.split()[0]) for bar in spread.bars) == 300
    view = dataclasses.replace(Run(rows).view(), ledger=lambda: iter(tables), filters=filters)
    page = assert_self_contained(build_report(view))
    assert f"filters.blur 300 drops {found['blur'].beyond} of 300" in page.section("quality")
    assert "filters.dark 100 is recommended, off; it would drop" in page.section("quality")
    assert "quality" not in assert_self_contained(Run([row("pool/0")]).report()).sections


def test_nothing_kept_and_an_empty_pool_are_reports_too():
    dead = [row(f"pool/{i}", "dead", "decode", reason="TypeError: what is it", id=None) for i in range(3)]
    assert "No image of the pool was kept." in assert_self_contained(Run(dead).report()).text
    page = assert_self_contained(Run([]).report(tables=1))
    assert "0 kept + 0 dropped + 0 unreadable = 0 files" in page.text
    assert Run([], flow=[]).report()


def test_files_that_cannot_be_shown_leave_a_tile_with_the_reason():
    rows = [row(f"pool/{name}.png") for name in ("gone", "noise", "refused")]
    view = Run(rows, {"pool/noise.png": b"noise"}).view()

    def read(uri: str) -> bytes:
        if "refused" in uri:
            raise PermissionError("\udcff not for you")
        return view.read(uri)

    page = assert_self_contained(build_report(dataclasses.replace(view, read=read)))
    assert "not readable: KeyError" in page.section("kept")
    assert "not readable: PermissionError" in page.section("kept")
    assert page.tags["img"] == 0


def test_sums_that_do_not_add_up_raise_an_alarm():
    run = Run(plausible().rows, flow=[dict(stage) for stage in plausible().summary["flow"]])
    run.summary["flow"][3]["dropped"] += 1
    problems = discrepancies(run.summary["flow"], {"kept": 90, "dropped": 71, "dead": 1})
    assert len(problems) == 2
    assert "entered dedup, but" in problems[0]
    assert "The numbers do not add up." in assert_self_contained(run.report()).text
    run.summary["flow"] = flow(run.rows)[:-2]
    assert "the ledger has 90 kept files, run.json counts 130" in run.report()


def test_pictures_keep_their_proportions_and_are_small():
    html = plausible().report()
    page = assert_self_contained(html)
    source = next(value for tag, name, value in page.attributes if value.startswith("data:image/jpeg"))
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert image.size == (60, 48)
    assert len(html) < 1_000_000


def test_thumbnails_stop_at_their_budget_and_charge_every_use():
    one = len(Thumbnails(lambda _: picture(1), DecodeLimits())("uri").source or "")
    thumbnail = Thumbnails(lambda _: picture(1), DecodeLimits(), budget=3 * one - 1)
    sources = [thumbnail("uri").source for _ in range(5)]
    assert [len(source or "") for source in sources] == [one, one, one, 0, 0]
    assert thumbnail("uri").problem == "no room left in this report"


def big_tables(rows: int) -> Iterator[pa.Table]:
    """A ledger of every stage, many seeds, many components and many reasons, made without Python objects."""

    def text(format: str, numbers: Any) -> pa.Array:
        before, _, after = format.partition("%")
        return pc.binary_join_element_wise(before, pa.array(numbers).cast(pa.string()), after, "")

    for start in range(0, rows, 5000):
        n = np.arange(start, min(start + 5000, rows))
        kind = pa.array(n % 5)
        seeds = pc.binary_join_element_wise(text("seed%", n % 7919), text("other%", n % 104729), " ")
        columns = {name: pa.nulls(len(n), SCHEMA.field(name).type) for name in SCHEMA.names} | {
            "uri": text("pool/%.jpg", n),
            "id": text("%", n),
            "role": pa.array(["pool"]).take(pa.array(n * 0)),
            "status": pa.array(["kept", "dropped", "dropped", "dropped", "dead"]).take(kind),
            "stage": pa.array(["shards", "dedup", "leaks", "filter", "decode"]).take(kind),
            "reason": pc.binary_join_element_wise(text("cause%", n % 999), text("number %", n), "A: "),
            "representative": text("%", n // 3),
            "component": text("component%", n // 10),
            "similarity": n % 1000 / 1000,
            "tightness": n // 10 % 997 / 997,
            "seed_ids": pc.split_pattern(seeds, " "),
            "cluster": n % 50,
            "leaked_reference": text("references/%.jpg", n % 1000),
        }
        yield pa.table(columns).cast(SCHEMA)


def peak_of_survey(rows: int) -> int:
    """Bytes of Python objects at the worst moment; Arrow's own memory is that of one table."""
    tracemalloc.start()
    survey = Survey(lambda: big_tables(rows), seed=0)
    locate(lambda: big_tables(rows), survey)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("rows", [15_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_ledger(rows):
    small, large = peak_of_survey(rows // 3), peak_of_survey(rows)
    assert large < 1.3 * small
    assert large < 32 * 2**20


def test_a_ledger_of_100000_rows_of_noise_pictures_stays_within_the_size_bound():
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (160, 160, 3), dtype=np.uint8)).save(buffer, "PNG")
    stage = {"stage": "s" * 999, "units": 1, "rows": 1, "seconds": 1.0, "workers": 1}
    summary = {
        "flow": [{"stage": "decode", "in": 100_000, "kept": 20_000, "dropped": 60_000, "dead": 20_000}],
        "stages": [stage] * 5000,
        "sources": [{"role": "pool", "name": "n" * 999, "kind": "folder", "files": 1, "dead": 0}] * 5000,
        "notes": ["n" * 9999] * 500,
        "removed_at": [[i / 5000, i] for i in range(5000)],
        "retrieval": [{"set": "s" * 999, "mode": "m", "seeds": 1, "retrievals": 1, "distinct": 1}] * 5000,
        "versions": {f"package{i}": "1" * 999 for i in range(5000)},
    }
    noise = buffer.getvalue()
    html = build_report(RunView(summary, "<" * 10**6, lambda: big_tables(100_000), lambda _: noise, str))
    assert_self_contained(html)
    assert len(html.encode()) < 8_000_000
    assert "4,900 more not shown" in html
    assert Page(html).tags["img"] > 200


def test_smallest_agrees_with_sorting():
    random = np.random.default_rng(1)
    for limit, total in [(1, 0), (1, 50), (7, 5), (7, 7), (7, 500), (50, 333)]:
        keys = random.permutation(total).tolist()
        best = Smallest(limit)
        for key in keys:
            best.add(key, {"key": key})
        assert [r["key"] for r in best.rows()] == sorted(keys)[:limit]
        assert best.count == total


def test_labels_past_the_limit_are_counted_together():
    groups = Groups()
    for i in range(1000):
        groups.add(("filter", f"reason {i}"), i, {"uri": str(i)})
    counts = {label: rows.count for label, rows in groups.largest_first()}
    assert sum(counts.values()) == 1000
    assert counts["filter", "(other)"] == 800
    assert len(counts) == 201


def test_reasons_that_differ_in_numbers_and_ids_are_one():
    assert generalise("side 12 px is below 32.5") == "side … px is below …"
    assert generalise(f"copy of {identity('a')}") == "copy of …"
    assert generalise("UnidentifiedImageError") == "UnidentifiedImageError"


def test_the_flow_is_drawn_to_scale():
    drawn = bands(plausible().summary["flow"])
    widths = [float(band.kept_path.removeprefix("M0 0H").partition("V")[0]) for band in drawn]
    assert widths == pytest.approx([940 * b.kept / 162 for b in drawn], abs=0.05)
    assert [bool(b.dead_path) for b in drawn] == [True] + [False] * 6
    assert totals(plausible().summary["flow"]) == {"kept": 90, "dropped": 71, "dead": 1}


def test_the_curve_spans_its_box_and_needs_two_thresholds():
    drawn = curve([[0.9, 25], [0.6, 100], [0.75, 50]])
    assert drawn
    assert [(x, y) for x, y, _ in drawn.points] == [(46, 12), (197, 92), (348, 132)]
    assert curve([[0.9, 5]]) is None
    assert curve([]) is None
    level = curve([[0.5, 0], [0.6, 0]])
    assert level
    assert {y for _, y, _ in level.points} == {172}


def test_contact_sheet_places_each_image_whole_and_centred():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sizes = [(80, 40), (10, 40), (5, 5)]
    images = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    with Image.open(io.BytesIO(contact_sheet(images, columns=2, side=40, gap=4))) as sheet:
        assert sheet.size == (84, 84)
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    for (y, x), colour in {(20, 20): colours[0], (20, 64): colours[1], (64, 20): colours[2]}.items():
        assert np.abs(pixels[y, x] - colour).max() < 20
    for y, x in [(3, 20), (20, 48), (64, 64)]:
        assert pixels[y, x].min() > 235


def test_contact_sheet_of_any_mode_any_number_is_deterministic():
    modes = [Image.new(mode, (30, 20)) for mode in ("L", "RGBA", "P", "CMYK", "1")]
    assert contact_sheet(modes, columns=9) == contact_sheet(modes, columns=9)
    with Image.open(io.BytesIO(contact_sheet(modes, columns=9, side=10, gap=0))) as sheet:
        assert sheet.size == (50, 10)
    with Image.open(io.BytesIO(contact_sheet([], columns=4, side=10))) as sheet:
        assert sheet.size == (10, 10)
    with pytest.raises(ValueError, match="columns 0"):
        contact_sheet(modes, columns=0)
