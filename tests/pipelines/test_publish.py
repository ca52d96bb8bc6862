"""`granary publish` with the real clients against a stand-in of the Hub, in processes of their own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from granary.curation.runs.run import Marker
from granary.curation.store import schema
from granary.pipelines.command import main
from tests.hub_stand_in import TOKEN, Hub

REPO = "org/cats"
SCHEMA = schema.arrow_schema(schema.curated_features())
LOAD = """
import hashlib, json, sys
import datasets
datasets.disable_progress_bars()
for config, streaming in (("default", False), ("default", True), *((name, False) for name in sys.argv[2:])):
    rows = datasets.load_dataset(sys.argv[1], config, split="train", streaming=streaming)
    if config == "default":
        assert isinstance(rows.features["image"], datasets.Image)
        rows = rows.cast_column("image", datasets.Image(decode=False))
        print(json.dumps([[row["id"], hashlib.sha256(row["image"]["bytes"]).hexdigest()] for row in rows]))
    else:
        print(json.dumps([row["id"] for row in rows]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def environment(hub: Hub, home: Path, token: str | None = TOKEN, xet: bool = False) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    named = {"HF_TOKEN": token} if token else {}
    chosen = {"HF_HUB_DISABLE_XET": "0"} if xet else {}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), **named, **chosen}


def command(run: Path, *words: str) -> list[str]:
    call = "import sys; from granary.pipelines.command import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", call, "publish", str(run), *([] if "--repo" in words else ["--repo", REPO]), *words]


def publish(
    hub: Hub, run: Path, *words: str, token: str | None = TOKEN, xet: bool = False
) -> subprocess.CompletedProcess[str]:
    environ = environment(hub, run.parent / "home", token, xet)
    return subprocess.run(command(run, *words), env=environ, capture_output=True, text=True, timeout=100)


def write_shard(path: Path, number: int, rows: int = 1, size: int = 100) -> None:
    row = {"id": f"{number:032x}", "captions": []}
    pictures = [{"bytes": random.Random(f"{number}-{i}").randbytes(size), "path": "a.png"} for i in range(rows)]
    table = pa.Table.from_pylist([row | {"image": one} for one in pictures], SCHEMA)
    pq.write_table(table, path, row_group_size=100)


def write_run(folder: Path, shards: int, rows: int = 1, size: int = 100) -> Path:
    """Write a finished run by hand: the parts of it that publishing reads, as any pipeline leaves them."""
    data = folder / "dataset" / "data"
    data.mkdir(parents=True)
    for number in range(shards):
        write_shard(data / f"train-{number:05d}-of-{shards:05d}.parquet", number, rows, size)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "cats", "licence": "cc0-1.0", "out": str(folder)}))
    count(folder)
    return folder


def count(folder: Path) -> None:
    """Write run.json and the markers of the shards."""
    (folder / "shards").mkdir(exist_ok=True)
    for path in (folder / "dataset" / "data").iterdir():
        data = path.read_bytes()
        marker = Marker(f"dataset/data/{path.name}", "", hashlib.sha256(data).hexdigest(), len(data), 0)
        (folder / "shards" / f"{path.stem}.done").write_bytes(marker.dump())
    sizes = [path.stat().st_size for path in (folder / "dataset" / "data").iterdir()]
    facts = {"kind": "sample", "name": "cats", "samples": len(sizes), "shards": len(sizes), "bytes": sum(sizes)}
    (folder / "run.json").write_text(json.dumps(facts))


def change(run: Path, shard: str, number: int) -> None:
    """Give a run another shard of that name, as a changed recipe would."""
    write_shard(run / "dataset" / "data" / shard, number)
    count(run)


def shards_of(run: Path) -> dict[str, bytes]:
    return {f"data/{path.name}": path.read_bytes() for path in sorted((run / "dataset" / "data").iterdir())}


def assert_complete(hub: Hub, run: Path) -> None:
    """The branch holds the run's shards, and granary.json says so."""
    held = hub.head(REPO)
    assert {path: data for path, data in held.items() if path.startswith("data/")} == shards_of(run)
    manifest = json.loads(held["granary.json"])
    assert manifest["complete"]
    assert {path: entry["sha256"] for path, entry in manifest["files"].items()} == {
        path: hashlib.sha256(data).hexdigest()
        for path, data in held.items()
        if path not in (".gitattributes", "granary.json")
    }


def test_a_curated_run_is_published_and_loads_as_it_is(hub, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    recipe = (copy / "recipe.yaml").read_text().replace("licence: unknown", "licence: cc0-1.0")
    (copy / "recipe.yaml").write_text(recipe)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = publish(hub, copy, "--ledger", "--embeddings", "--private")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert hub.repos[REPO].private
    assert_complete(hub, copy)
    assert hub.head(REPO)["contact-sheet.jpg"] == (copy / "dataset" / "contact-sheet.jpg").read_bytes()
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, REPO, "ledger", "embeddings"],
        env=environment(hub, tmp_path / "reader"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert loaded.returncode == 0, loaded.stderr
    plain, streamed, ledger, embeddings = map(json.loads, loaded.stdout.splitlines())
    wanted = [[row["id"], hashlib.sha256(row["image"]["bytes"]).hexdigest()] for row in run.samples]
    assert plain == streamed == wanted
    assert ledger == [row["id"] for row in run.table("ledger")]
    assert sorted(embeddings) == sorted(row["id"] for row in run.samples)


def test_only_a_changed_shard_is_sent_again(hub, tmp_path):
    run = write_run(tmp_path / "run", 4)
    assert publish(hub, run).returncode == 0
    first = dict(hub.puts)
    assert publish(hub, run).returncode == 0
    assert dict(hub.puts) == first
    assert hub.titles(REPO)[1:] == ["Add cats, part 1 of 1", "Complete cats: 4 shards"]
    change(run, "train-00002-of-00004.parquet", 77)
    assert publish(hub, run).returncode == 0
    changed = hashlib.sha256((run / "dataset/data/train-00002-of-00004.parquet").read_bytes()).hexdigest()
    assert {sha for sha in hub.puts if sha not in first} == {changed}
    assert_complete(hub, run)


def test_shards_of_an_earlier_cut_go_and_files_of_the_user_stay(hub, tmp_path):
    assert publish(hub, write_run(tmp_path / "three", 3)).returncode == 0
    hub.repos[REPO].branches["main"][-1].files["LICENSE"] = (hub.store(b"mine"), False)
    run = write_run(tmp_path / "two", 2)
    assert publish(hub, run).returncode == 0
    assert {path for path in hub.head(REPO) if path.startswith("data/")} == set(shards_of(run))
    assert hub.head(REPO)["LICENSE"] == b"mine"


def test_three_kills_send_no_file_twice_and_commits_land_on_the_way(hub, tmp_path):
    run = write_run(tmp_path / "run", 120)
    landed = []
    for kill_at in (20, 55, 95):
        process = subprocess.Popen(command(run), env=environment(hub, tmp_path), stderr=subprocess.DEVNULL)

        def kill(method: str, path: str, number: int, process: Any = process, kill_at: int = kill_at) -> None:
            if method == "PUT" and hub.puts.total() >= kill_at:
                process.kill()

        hub.fault = kill
        assert process.wait(timeout=100) == -9
        landed.append(len(hub.titles(REPO)) - 1)
    hub.fault = lambda *_: None
    assert not json.loads(hub.head(REPO)["granary.json"])["complete"]
    assert publish(hub, run).returncode == 0
    assert_complete(hub, run)
    assert 0 < landed[0] < landed[1] < landed[2]  # each kill finds commits of its own session
    assert set(hub.puts.values()) == {1}
    assert {hashlib.sha256(data).hexdigest() for data in shards_of(run).values()} <= set(hub.puts)


def test_files_go_through_xet_on_request_and_a_kill_loses_no_commit(hub, tmp_path):
    run = write_run(tmp_path / "run", 9, size=200_000)
    hub.cas = tmp_path / "cas"
    hub.known = {hashlib.sha256(data).hexdigest(): data for data in shards_of(run).values()}
    process = subprocess.Popen(command(run), env=environment(hub, tmp_path, xet=True), stderr=subprocess.DEVNULL)

    def kill(method: str, path: str, number: int) -> Any:
        if "/commit/" in path and len(hub.titles(REPO)) == 2:
            process.kill()
            return "drop"
        return None

    hub.fault = kill
    assert process.wait(timeout=100) == -9
    landed = {path for path in hub.head(REPO) if path.startswith("data/")}
    assert 0 < len(landed) < 9
    hub.fault = lambda *_: None
    done = publish(hub, run, xet=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(landed)} were there already" in done.stderr
    assert_complete(hub, run)
    assert not hub.puts  # none over HTTP


def test_files_go_over_http_where_xet_fails(hub, tmp_path):
    run = write_run(tmp_path / "run", 2)
    done = publish(hub, run, xet=True)
    assert done.returncode == 0, done.stderr
    assert "sending over HTTP instead of Xet, which failed: " in done.stderr
    assert_complete(hub, run)
    assert set(hub.puts.values()) == {1}


def test_a_busy_hub_and_broken_connections_are_waited_for(hub, tmp_path):
    run, met = write_run(tmp_path / "run", 6), set()

    def fault(method: str, path: str, number: int) -> Any:
        """Misbehave once at each kind of request, each in another way."""
        kinds = {
            "/whoami-v2": (429, {"Retry-After": "0"}),
            "/repos/create": (503, {}),
            "/tree/": (429, {"Retry-After": "0"}),
            "/objects/batch": (500, {}),
            "/preupload/": (429, {"Retry-After": "0"}),
            "/commit/": "lose",
            "/lfs/": "drop",
        }
        for kind, answer in kinds.items():
            if kind in path and kind not in met:
                met.add(kind)
                return answer
        return None

    hub.fault = fault
    done = publish(hub, run)
    assert done.returncode == 0, done.stderr
    assert len(met) == 7
    assert_complete(hub, run)
    assert set(hub.puts.values()) == {1}
    assert hub.titles(REPO)[1:] == ["Add cats, part 1 of 2", "Add cats, part 2 of 2", "Complete cats: 6 shards"]


def test_a_dry_run_prints_what_would_be_sent_and_changes_nothing(hub, tmp_path):
    run = write_run(tmp_path / "run", 2)
    done = publish(hub, run, "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    assert all(path in done.stdout for path in [*shards_of(run), "README.md", "croissant.json"])
    assert publish(hub, run).returncode == 0
    change(run, "train-00001-of-00002.parquet", 5)
    count = len(hub.requests)
    second = publish(hub, run, "--dry-run")
    assert "train-00001" in second.stdout
    assert "train-00000" not in second.stdout
    assert {method for method, _ in hub.requests[count:]} <= {"GET", "HEAD"}


CARD = """---
license: cc-by-4.0
extra_gated_prompt: "You agree not to identify people."
extra_gated_fields:
  Name: text
viewer: false
---
# Our pictures

Words that took a day.
"""


def test_a_card_that_stands_on_the_hub_is_merged_and_a_dry_run_shows_how(hub, tmp_path):
    run = write_run(tmp_path / "run", 1)
    hub.add_repo(REPO, {"README.md": CARD.encode()})
    dry = publish(hub, run, "--dry-run", "--license", "mit")
    assert "--- README.md on the Hub" in dry.stdout
    assert "-license: cc-by-4.0" in dry.stdout
    assert "+license: mit" in dry.stdout
    assert "\n-extra_gated_prompt" not in dry.stdout
    assert hub.head(REPO)["README.md"] == CARD.encode()
    done = publish(hub, run)
    assert done.returncode == 0, done.stderr
    assert "lines of that card replaced: 1" in done.stderr  # the licence, which the recipe states
    page = hub.head(REPO)["README.md"].decode()
    for words in ("Words that took a day.", "extra_gated_prompt: You agree", "viewer: false", "# cats"):
        assert words in page
    written = page.replace("begin more -->\n", "begin more -->\nwritten on the Hub\n")
    hub.repos[REPO].branches["main"][-1].files["README.md"] = (hub.store(written.encode()), False)
    again = publish(hub, run)
    assert again.returncode == 0, again.stderr
    assert hub.head(REPO)["README.md"].decode() == written
    assert "merged" not in again.stderr


def test_a_new_branch_keeps_the_words_of_the_main_one(hub, tmp_path):
    hub.add_repo(REPO, {"README.md": CARD.encode()})
    assert publish(hub, write_run(tmp_path / "run", 1), "--branch", "trial").returncode == 0
    assert "Words that took a day." in hub.head(REPO, "trial")["README.md"].decode()
    assert hub.head(REPO)["README.md"] == CARD.encode()


def test_another_branch_leaves_main_as_it_is(hub, tmp_path):
    run = write_run(tmp_path / "run", 1)
    assert publish(hub, run, "--branch", "v2").returncode == 0
    assert set(hub.head(REPO, "v2")) >= set(shards_of(run))
    assert set(hub.head(REPO)) == {".gitattributes"}


def test_mistakes_before_the_hub_is_asked_are_one_sentence(tmp_path, capsys):
    run = write_run(tmp_path / "run", 1)
    calls = {"give ORG/NAME": "cats", "it has no run.json": REPO}
    (run / "run.json").rename(run / "away")
    for sentence, repo in calls.items():
        assert main(["publish", str(run), "--repo", repo]) == 2
        assert sentence in capsys.readouterr().err
    (run / "away").rename(run / "run.json")
    (run / "recipe.yaml").write_text("licence: unknown")
    assert main(["publish", str(run), "--repo", REPO]) == 2
    assert "states no licence" in capsys.readouterr().err
    next((run / "dataset" / "data").iterdir()).unlink()
    assert main(["publish", str(run), "--repo", REPO]) == 2
    assert "holds 0 shards" in capsys.readouterr().err


def mistakes() -> dict[str, Any]:
    def foreign(hub: Hub, run: Path) -> list[str]:
        hub.add_repo(REPO, {"data.csv": b"a,b"})
        return []

    def public(hub: Hub, run: Path) -> list[str]:
        hub.add_repo(REPO)
        return ["--private"]

    def other(hub: Hub, run: Path) -> list[str]:
        hub.add_repo(REPO, {"granary.json": json.dumps({"name": "dogs"}).encode()})
        return []

    def language(hub: Hub, run: Path) -> list[str]:
        (run / "dataset" / "README.md").write_text("---\nlanguage: no-such-language\n---\n")
        return []

    return {
        "holds 1 files that granary did not put there": foreign,
        "is there already and is public": public,
        "holds the dataset 'dogs', not 'cats'": other,
        "the Hub refuses the header": language,
        "did you mean cc-by-4.0?": lambda hub, run: ["--licence", "CC BY 4.0"],
        "may not write to elsewhere": lambda hub, run: ["--repo", "elsewhere/cats"],
    }


@pytest.mark.parametrize("sentence", mistakes())
def test_a_mistake_is_one_sentence_and_nothing_is_sent(hub, tmp_path, sentence):
    run = write_run(tmp_path / "run", 1)
    done = publish(hub, run, *mistakes()[sentence](hub, run))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not hub.puts


@pytest.mark.parametrize("token", [None, "hf_" + "WrongSecretToken" * 2])
def test_a_token_is_asked_for_and_never_shown(hub, tmp_path, token):
    run = write_run(tmp_path / "run", 1)
    done = publish(hub, run, "--debug", token=token)
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr.splitlines()[-1]
    assert token is None or token not in done.stdout + done.stderr


def test_the_token_and_signed_addresses_stand_nowhere(hub, tmp_path):
    run = write_run(tmp_path / "run", 2)
    hub.fault = lambda method, path, number: (500, {}) if number == 1 else (418, {}) if "/commit/" in path else None
    failed = publish(hub, run, "--debug")
    assert failed.returncode == 2
    hub.fault = lambda *_: None
    done = publish(hub, run, "--debug")
    assert done.returncode == 0, done.stderr
    printed = [text.encode() for one in (failed, done) for text in (one.stdout, one.stderr)]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for data in [*printed, *written, *hub.objects.values(), *(title.encode() for title in hub.titles(REPO))]:
        assert TOKEN.encode() not in data
        assert b"presigned" not in data


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(hub, tmp_path):
    run = write_run(tmp_path / "run", 8, rows=100, size=1_000_000)
    (run / "dataset" / "contact-sheet.jpg").write_bytes(b"as granary curate leaves it")
    # ru_maxrss would count what this process held when it forked.
    measured = "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    call = command(run)
    call[2] = call[2].replace("sys.exit(main(sys.argv[1:]))", f"code = main(sys.argv[1:]); {measured}; sys.exit(code)")
    done = subprocess.run(call, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("VmHWM:")[1].split()[0]) * 1024
    assert peak < 500e6 < sum(map(len, hub.objects.values()))
