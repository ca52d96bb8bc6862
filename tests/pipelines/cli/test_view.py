"""`granary view`: every kind of run is shown as its ledger has it, to nobody else, whatever names and captions hold."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil

import every_pipeline
import fsspec
import numpy as np
import pools
import pytest
from PIL import Image
from places import ROOT
from viewing import visiting

from granary.pipelines import command
from granary.pipelines.engine.units import Runner

LAYOUT = ("--encoder.retrieval", "builtin:layout")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return every_pipeline.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory):
    """A run of each kind."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", pools.run_in_a_loop)
        for kind in every_pipeline.PIPELINES:
            words = every_pipeline.words(kind, inputs, inputs, out / kind)
            assert command.main([*words, *(LAYOUT if kind == "curate" else ())]) == 0
    return {kind: pools.Run(str(out / kind)) for kind in every_pipeline.PIPELINES}


@pytest.fixture(scope="module")
def page(runs):
    with visiting(runs["curate"].path) as visitor:
        yield visitor


def picture_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# -- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", every_pipeline.PIPELINES)
def test_the_rows_of_every_kind_are_those_of_its_ledger(runs, kind):
    ledger = runs[kind].table("ledger")
    with visiting(runs[kind].path) as visitor:
        told = visitor.json("run")
        assert (told["kind"], told["rows"], told["total"]) == (kind, len(ledger), len(ledger))
        names = ("uri", "id", "status", "stage", "reason")
        assert [[row[name] for name in names] for row in visitor.rows()] == [
            [row[name] for name in names] for row in ledger
        ]
        for name in ("status", "stage"):
            assert visitor.facet(name) == [[row[name]] for row in ledger]
        for number, row in enumerate(ledger):
            whole = visitor.json("row", row=number)
            assert whole["row"]["uri"] == row["uri"]
            assert whole["story"].startswith(row["uri"])
            if row["status"] == "kept":
                assert max(picture_of(visitor.get("picture", row=number)).size) <= 160
            elif row["status"] == "dead":
                assert len(visitor.refused("picture", 404, row=number)) > 20


def test_labels_and_captions_come_from_shards_and_sources(runs, tmp_path):
    with visiting(runs["render"].path) as visitor:
        captions = {row["id"]: row["captions"][0] for row in runs["render"].samples}
        assert {row["id"]: row["caption"] for row in visitor.rows()} == captions
        assert visitor.numbers("search", text="elephant A") == [
            number for number, row in enumerate(visitor.rows()) if row["caption"] == "a Elephant"
        ]
    pool = pools.write(tmp_path / "pool", {f"{name}/{i}.png": pools.picture(i) for i, name in enumerate("abcab")})
    (pool / "a" / "0.txt").write_text("Ein Hund\n")
    pools.curate({"pool": pool}, tmp_path / "run", "--pool.labels", "folder")
    with visiting(tmp_path / "run") as visitor:
        rows = visitor.rows()
        assert [row["label"] for row in rows] == [row["uri"].split("/")[1] for row in rows]
        assert visitor.facet("label") == [[row["label"]] for row in rows]
        assert [rows[number]["uri"] for number in visitor.numbers("search", text="HUND ein")] == ["pool/a/0.png"]
        assert [rows[number]["uri"] for number in visitor.numbers("search", text="pool/b/1")] == ["pool/b/1.png"]
        assert visitor.numbers("search", text="hund b/1") == []


def test_seeds_are_a_facet_of_many_values(page, runs):
    seeds = {row["id"]: row["uri"] for row in runs["curate"].table("seeds")}
    ledger = runs["curate"].table("ledger")
    assert sum(map(len, (row["seed_ids"] for row in ledger))) > 3
    expected = [[seeds[identity] for identity in row["seed_ids"]] or ["(none)"] for row in ledger]
    assert page.facet("seed") == expected


def test_a_click_tells_what_explain_tells_and_shows_what_decided(page, runs, capsys):
    for number, row in enumerate(runs["curate"].table("ledger")):
        assert command.main(["explain", str(runs["curate"].path), row["uri"]]) == 0
        told = page.json("row", row=number)
        assert told["story"].strip() in capsys.readouterr().out
        whats = {one["what"] for one in told["beside"]}
        assert ("the reference it resembles" in whats) == (row["leaked_reference"] is not None)
        assert ("leads to the reference" in whats) == (row["leak_path"] is not None)
        assert sum(one["what"] == "a seed that retrieved it" for one in told["beside"]) == len(row["seed_ids"])
        for one in told["beside"]:
            query = {"row": one["row"]} if one["row"] is not None else {"role": one["role"], "uri": one["uri"]}
            assert picture_of(page.get("picture", **query)).format == "JPEG"


def test_a_picture_comes_from_its_source_then_its_shard_then_not_at_all(tmp_path):
    pool = pools.write(tmp_path / "pool", {f"{i}.png": pools.picture(i) for i in range(3)})
    pools.write(pool, {"copy.png": pools.picture(0)})
    pools.curate({"pool": pool}, tmp_path / "run")
    with visiting(tmp_path / "run") as visitor:
        before = [visitor.get("picture", row=row) for row in range(4)]
    shutil.rmtree(pool)
    with visiting(tmp_path / "run") as visitor:
        kept = [number for number, row in enumerate(visitor.rows()) if row["status"] == "kept"]
        assert [visitor.get("picture", row=row) for row in kept] == [before[row] for row in kept]
        (lost,) = set(range(4)) - set(kept)
        assert "cannot be read any more" in visitor.refused("picture", 404, row=lost)
    pools.write(pool, {f"{i}.png": pools.picture(9) for i in range(3)} | {"copy.png": pools.picture(9)})
    with visiting(tmp_path / "run") as visitor:
        assert [visitor.get("picture", row=row) for row in kept] == [before[row] for row in kept]
        assert "changed since" in visitor.refused("picture", 404, row=lost)


def test_nothing_is_fetched_from_addresses(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("https://example.org/a.jpg?X-Amz-Signature=c0ffee\n")
    for image in (pools.picture(1), pools.picture(1), pools.picture(2)):
        pools.write(tmp_path / "pool", {f"{len(list(tmp_path.glob('pool/*')))}.png": image})
    pools.curate({"pool": tmp_path / "pool"}, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    changed = recipe.replace(f"{tmp_path}/pool/", f"{tmp_path}/list.txt").replace("kind: folder", "kind: urls")
    (tmp_path / "run" / "recipe.yaml").write_text(changed)
    with visiting(tmp_path / "run") as visitor:
        statuses = {row["status"]: number for number, row in enumerate(visitor.rows())}
        assert "fetches nothing" in visitor.refused("picture", 404, row=statuses["dropped"])
        assert picture_of(visitor.get("picture", row=statuses["kept"])).size == (72, 72)


def test_a_run_behind_an_address_is_shown_and_decided(runs):
    store = fsspec.filesystem("memory")
    for path in runs["curate"].path.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/viewed/{path.relative_to(runs['curate'].path)}", path.read_bytes())
    with visiting("memory://viewed") as visitor:
        kept = next(number for number, row in enumerate(visitor.rows()) if row["status"] == "kept")
        assert picture_of(visitor.get("picture", row=kept)).size == (72, 72)
        body = json.dumps({"decision": "drop", "rows": [kept]}).encode()
        assert visitor.send(visitor.base + "decisions", "POST", body)[0] == 200
    assert (
        store.cat_file("/viewed/decisions.csv").decode().endswith(f",{runs['curate'].table('ledger')[kept]['uri']}\n")
    )


# -- who may ask, and what names may hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "run", "page.js", "picture?row=0", "rows?rows=0"])
def test_without_the_token_nothing_is_told(page, path):
    wrong = page.base[:-2] + ("A" if page.base[-2] != "A" else "B") + "/"
    for base in ("/", wrong, "/x" + page.base, page.base.rstrip("/"), "/%2e" + page.base):
        if (base, path) != (page.base.rstrip("/"), ""):
            status, _, body = page.send(base + path)
            assert (status, b"token" in body) == (403, True)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1", "localhost.evil:PORT", "0.0.0.0:PORT"]
)
def test_another_name_is_refused(page, host):
    """A stranger's page whose name was made to point here has a Host of its own (DNS rebinding)."""
    host = host.replace("PORT", str(page.server.server_port))
    assert page.send(page.base + "run", Host=host)[0] == 421
    assert page.send(page.base + "run", Host="")[0] == 421
    assert page.send(page.base + "run", Host=f"localhost:{page.server.server_port}")[0] == 200


def test_another_page_and_long_bodies_are_refused(page):
    assert page.send(page.base + "run", Origin="https://evil.example")[0] == 403
    assert page.send(page.base + "run", Origin=f"http://127.0.0.1:{page.server.server_port}")[0] == 200
    for length in ("16000001", "-1", "x", ""):
        status, _, _ = page.send(page.base + "export", "POST", b"", Content_Length=length or "z")
        assert status == 413


def test_what_is_not_foreseen_is_told_on_the_terminal_without_secrets(page, monkeypatch, capsys):
    def fail(request):
        raise RuntimeError("https://me:hunter2@host/x?sig=hunter2 \x1b[2J")

    monkeypatch.setattr(page.server, "answer", fail)
    assert page.send(page.base + "run")[0] == 500
    told = capsys.readouterr().err
    assert "RuntimeError: https://" in told
    assert "hunter2" not in told
    assert "\x1b" not in told


def test_the_server_listens_on_loopback_alone(page):
    assert page.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path", ["../run.json", "..%2frun.json", "%2e%2e/recipe.yaml", "/etc/passwd", "page/page.js", "api.py"]
)
def test_no_path_leads_out_of_the_page(page, path):
    assert page.send(page.base + path)[0] == 404
    assert page.refused("picture", 404, role="pool", uri="../../etc/passwd")
    assert page.refused("picture", 404, role="../pool", uri="pool/plain/00.png")


@pytest.mark.parametrize("row", ["-1", "27", "1e9", "٣", "", "99999999999999999999"])
def test_a_row_that_is_none_is_one_sentence(page, row):
    assert "a number below 27" in page.refused("row", 400, row=row)
    assert "a number below 27" in page.refused("picture", 400, row=row)


def test_every_answer_carries_the_policy(page):
    for target in ("", "run", "style.css", "nothing", "picture?row=0"):
        _, headers, _ = page.send(page.base + target)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    assert b"<script>" not in page.get("")
    assert b"onclick" not in page.get("")


HOSTILE = "<img src=x onerror=alert(1)>\n=cmd|' \u202egpj"


def test_hostile_names_and_captions_stay_text(tmp_path):
    name = "<script>alert(1)<-script>\n=1+1.png"
    pool = pools.write(tmp_path / "pool", {name: pools.picture(1), "a.png": pools.picture(2)})
    (pool / "a.txt").write_text(HOSTILE)
    pools.curate({"pool": pool}, tmp_path / "run")
    with visiting(tmp_path / "run") as visitor:
        uris = [row["uri"] for row in visitor.rows()]
        assert f"pool/{name}" in uris
        body = np.arange(2, dtype="<u4").tobytes()
        _, headers, data = visitor.send(visitor.base + "export?format=csv", "POST", body)
        assert headers["Content-Type"].startswith("text/csv")
        header, *lines = csv.reader(io.StringIO(data.decode()))
        assert header == ["id", "uri", "status", "stage", "reason"]
        assert sorted(line[1] for line in lines) == ["pool/<script>alert(1)<-script>\\n=1+1.png", "pool/a.png"]
        _, _, data = visitor.send(visitor.base + "export?format=jsonl", "POST", body)
        assert [json.loads(line)["uri"] for line in data.decode().splitlines()] == uris
        assert visitor.send(visitor.base + "export?format=exe", "POST", body)[0] == 400
        assert visitor.send(visitor.base + "export?format=csv", "POST", body[:3])[0] == 400
        assert visitor.send(visitor.base + "export?format=csv", "POST", b"\xff" * 4)[0] == 400


def test_secrets_of_addresses_do_not_reach_the_page(tmp_path, runs):
    shutil.copytree(runs["render"].path, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["notes"] = ["from https://me:secret@host/x?X-Amz-Signature=c0ffee"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with visiting(tmp_path / "run") as visitor:
        assert visitor.json("run")["notes"] == ["from https://host/x"]
        assert str(tmp_path).encode() not in visitor.get("run")


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_address_and_ends_with_ctrl_c(runs, monkeypatch, capsys):
    from granary.curation.view.server import Server

    def interrupted(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert command.main(["view", str(runs["pack"].path)]) == 0
    assert capsys.readouterr().out.startswith(opened[0])
    assert command.main(["view", str(runs["pack"].path), "--no-browser"]) == 0
    assert len(opened) == 1


def test_what_cannot_be_shown_is_one_sentence(tmp_path, runs, capsys, page):
    refusals = {
        (str(tmp_path),): "is not a run directory",
        (str(runs["pack"].path), "--port", "99999"): "port: 99999 cannot be listened on",
        (str(runs["pack"].path), "--port", str(page.server.server_port)): "cannot be listened on",
    }
    for words, sentence in refusals.items():
        assert command.main(["view", *words, "--no-browser"]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert "Traceback" not in said


def test_the_commands_of_the_page_run(inputs, tmp_path, monkeypatch, capsys):
    from granary.curation.view.answers import Request
    from granary.curation.view.server import Server

    monkeypatch.chdir(tmp_path)
    for name, role in (("photos", "pool"), ("favourites", "seeds"), ("benchmark", "references")):
        (tmp_path / name).symlink_to(inputs / role)
    monkeypatch.setattr(Runner, "_run", pools.run_in_a_loop)

    def drop_the_first(self) -> None:
        """Do what a click would, in the place of a visitor."""
        assert self.answer(Request("POST", "decisions", body=b'{"decision": "drop", "rows": [4]}')).status == 200

    monkeypatch.setattr(Server, "serve_forever", drop_the_first)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "view.md").read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) > 2
    for line in commands:
        assert command.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert len(pools.Run(str(tmp_path / "runs" / "decided")).uris("dropped", "decisions")) == 1
