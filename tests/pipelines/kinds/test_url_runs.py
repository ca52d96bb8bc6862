"""Runs of granary curate on lists of addresses whose servers misbehave."""

from __future__ import annotations

import io
import time

import loopback
import pools
import pytest

import granary
from granary.pipelines.engine.units import Runner

QUICK = ("--download.retries", "0", "--download.backoff", "0.01", "--unit_rows", "16", "--dedup.enabled", "false")
OWN = ("--pool.private_addresses", "true", *QUICK)


def encoded(number, form="JPEG"):
    picture = pools.picture(number)
    extra = {"save_all": True, "append_images": [pools.picture(number + 1)]} if form == "GIF" else {}
    picture.save(file := io.BytesIO(), form, **extra)
    return file.getvalue()


def serving(answer):
    """Serve what answer(path) returns: a status, or bytes that are sent as the path says."""
    return loopback.serving(lambda handler: send(handler, answer(handler.path)))


def send(handler, body):
    """Send a status, or bytes in four pieces: in chunks, without a length, or plainly."""
    status, data = (body, b"") if isinstance(body, int) else (200, body)
    handler.send_response(status)
    chunked, endless = handler.path.startswith("/chunked"), handler.path.startswith("/no-length")
    length = ("Connection", "close") if endless else ("Content-Length", str(len(data)))
    handler.send_header(*("Transfer-Encoding", "chunked") if chunked else length)
    handler.end_headers()
    for start in range(0, len(data), len(data) // 4 + 1):
        part = data[start : start + len(data) // 4 + 1]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        handler.wfile.flush()
        time.sleep(0.02 if chunked or endless else 0)
    handler.wfile.write(b"0\r\n\r\n" if chunked else b"")
    handler.close_connection = endless


def write_list(folder, lines):
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_original_is_whole_however_it_was_sent(tmp_path):
    files = {name: encoded(number, name) for number, name in enumerate(("JPEG", "GIF"))}
    with serving(lambda path: files[path.rpartition("/")[2]]) as (base, _):
        rows = [f"{base}/{mode}/{name}" for mode in ("length", "chunked", "no-length") for name in files]
        run = pools.curate({"pool": write_list(tmp_path, rows)}, tmp_path / "run", *OWN)
    assert len(run.uris("dead")) == 0
    assert {row["image"]["bytes"] for row in run.samples} == set(files.values())


def test_an_outage_stops_and_the_same_command_goes_on_after_it(tmp_path, capsys):
    down = [True]
    with serving(lambda path: 503 if down[0] else encoded(int(path[1:]))) as (base, _):
        roles = {"pool": write_list(tmp_path, [f"{base}/{i}" for i in range(40)])}
        assert pools.attempt(roles, tmp_path / "run", *OWN) == 2
        assert "(40 HTTP 503)" in capsys.readouterr().err
        down[0] = False
        assert len(pools.curate(roles, tmp_path / "run", *OWN).uris("kept")) == 40


def test_what_failed_in_passing_is_fetched_next_time_and_the_rest_on_request(tmp_path, capsys):
    states = {3: 503, 7: 429, 9: 404, 11: 410}
    with serving(lambda path: states.get(int(path[1:])) or encoded(int(path[1:]))) as (base, asked):
        roles = {"pool": write_list(tmp_path, [f"{base}/{i}" for i in range(20)])}
        run = pools.curate(roles, tmp_path / "run", *OWN)
        dead = {uri.rpartition("/")[2]: run.ledger[uri]["reason"] for uri in run.uris("dead")}
        assert {number: reason.split(":")[0] for number, reason in dead.items()} == {
            str(number): f"HTTP {status}" for number, status in states.items()
        }
        assert "2 files could not be read for reasons that may pass" in capsys.readouterr().err
        states.clear()
        asked.clear()
        again = pools.curate(roles, tmp_path / "run", *OWN)
        assert asked[:2] == ["/3", "/7"] or asked[:2] == ["/7", "/3"]
        assert {uri.rpartition("/")[2] for uri in again.uris("dead")} == {"9", "11"}
        last = pools.curate(roles, tmp_path / "run", *OWN, "--retry-failed")
        whole = pools.curate(roles, tmp_path / "whole", *OWN)
    folders = ("pool", "dataset/data", "ledger", "dead-letter")
    assert last.hashes(*folders) == whole.hashes(*folders)
    assert len(whole.uris("kept")) == 20


@pytest.mark.parametrize("words", [QUICK, (*QUICK, "--max_unreadable", "1")])
def test_a_list_that_leads_to_our_own_network_says_which_option_takes_it(tmp_path, capsys, words):
    with serving(lambda path: encoded(int(path[1:]))) as (base, asked):
        roles = {"pool": write_list(tmp_path, [f"{base}/{i}" for i in range(20)])}
        assert pools.attempt(roles, tmp_path / "run", *words) == 2
    assert asked == []
    assert "private_addresses" in capsys.readouterr().err


def test_nothing_of_a_run_but_its_recipe_and_list_holds_a_secret(tmp_path):
    with serving(lambda path: encoded(int(path[1]))) as (base, _):
        rows = [f"{base.replace('//', '//me:hunter2@')}/{i}?X-Amz-Signature=c0ffee{i}&w=1" for i in range(3)]
        lists = tmp_path / "lists"
        lists.mkdir()
        rows += [str(tmp_path / "my-folder" / "a.jpg"), "http://127.0.0.1:1/x?token=hunter2"]
        page = "https://me:hunter2@host/page?id=7"
        (lists / "list.csv").write_text("url,page\n" + "".join(f"{row},{page}\n" for row in rows))
        run = pools.curate({"pool": lists / "list.csv"}, tmp_path / "run", *OWN, "--pool.trust_paths", "true")
    assert {row["metadata"] for row in run.samples} == {'{"page": "https://host/page?id=7"}'}
    assert len(run.uris("kept")) == 3
    for path in run.path.rglob("*"):
        text = path.read_bytes() if path.is_file() and path.name != "recipe.yaml" else b""
        if path.suffix == ".parquet":
            text = repr(run.table(str(path.parent.relative_to(run.path)))).encode()
        assert not [word for word in (b"hunter2", b"c0ffee", b"my-folder") if word in text], path


def test_the_function_tries_again_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "_run", pools.run_in_a_loop)
    states = {3: 404}
    with serving(lambda path: states.get(int(path[1:])) or encoded(int(path[1:]))) as (base, _):
        source = {"path": write_list(tmp_path, [f"{base}/{i}" for i in range(5)]), "private_addresses": True}
        fields = {"pool": source, "out": tmp_path / "run", "download": {"retries": 0}, "quiet": True}
        assert len(granary.curate(**fields).dataset()) == 4
        states.clear()
        assert len(granary.curate(**fields).dataset()) == 4
        assert len(granary.curate(**fields, retry_failed=True).dataset()) == 5
