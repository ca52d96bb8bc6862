"""Bad input and failing machines: one sentence where the user can correct it, a dead letter where a file is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pools
import pytest

from granary.pipelines import command

datasets.disable_progress_bars()


def sentence(capsys, status):
    """Return what a refused command said: one line that names no traceback."""
    error = capsys.readouterr().err
    assert status == 2, error
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("granary: ")
    return last


# -- mistakes in the call --------------------------------------------------------------------------------------------

MISTAKES = {
    "no such path": (["--pool", "{tmp}/nowhere"], ["pool.path", "nowhere", "nothing there"]),
    "an empty pool": (["--pool", "{tmp}/empty"], ["pool:", "empty", "holds no readable image"]),
    "no pool": ([], ["pool: missing", "--pool"]),
    "no out": (["--pool", "{pool}", "--out="], ["out:"]),
    "an unknown key": (["--pool", "{pool}", "--dedup.treshold", "0.9"], ["did you mean dedup.threshold?"]),
    "a key like no other": (["--pool", "{pool}", "--dedup.q", "1"], ["dedup.q", "dedup.block", "dedup.threshold"]),
    "an unknown key of a source": (["--pool", "{pool}", "--pool.labls", "folder"], ["pool.labls", "pool.labels"]),
    "a threshold above 1": (
        ["--pool", "{pool}", "--dedup.threshold", "1.5"],
        ["dedup.threshold: '1.5'", "less than 1"],
    ),
    "a threshold of 0": (["--pool", "{pool}", "--leaks.threshold", "0"], ["leaks.threshold", "greater than 0"]),
    "a word for a number": (["--pool", "{pool}", "--retrieval.k", "many"], ["retrieval.k", "'many'", "integer"]),
    "half a row": (["--pool", "{pool}", "--shards.rows", "2.5"], ["shards.rows", "2.5", "integer"]),
    "an unknown choice": (["--pool", "{pool}", "--shards.order", "alphabet"], ["shards.order", "'alphabet'", "'hash'"]),
    "levels that grow": (["--pool", "{pool}", "--balance.levels", "[2, 9]"], ["balance.levels", "each smaller"]),
    "broken brackets": (["--pool", "{pool}", "--balance.levels", "[2, "], ["balance.levels", "not a YAML list"]),
    "two sources of a name": (["--pool", "{pool}", "--seeds", "{pool}", "--pool.name", "seeds"], ["named 'seeds'"]),
    "a value for a group": (["--pool", "{pool}", "--dedup", "0.9"], ["dedup", "0.9"]),
    "retrieval without seeds": (
        ["--pool", "{pool}", "--encoder.retrieval", "hf:facebook/dinov2-base"],
        ["encoder.retrieval is hf:facebook/dinov2-base", "give --seeds"],
    ),
    "a label column without tables": (
        ["--pool", "{pool}", "--pool.label_column", "kind"],
        ["pool.label_column", "kind"],
    ),
    "a caption column without tables": (["--pool", "{pool}", "--pool.caption_column", "x"], ["pool.caption_column"]),
    "a split that no file has": (["--pool", "{pool}", "--pool.split", "train"], ["pool.split", "other splits: none"]),
    "a glob of a shard": (["--pool", "{tmp}/x.tar", "--pool.glob", "*.png"], ["pool.glob", "is read as webdataset"]),
    "an unknown option of Beam": (
        ["--pool", "{pool}", "--", "--direct_num_worker=3"],
        ["beam: --direct_num_worker is no option", "did you mean --direct_num_workers?"],
    ),
    "an option of Beam like no other": (["--pool", "{pool}", "--", "--xyzzy", "1"], ["--xyzzy", "no option of Apache"]),
    "a missing value": (["--pool", "{pool}", "--retrieval.k"], ["--retrieval.k needs a value"]),
    "a stray word": (["stray", "--pool", "{pool}"], ["'stray'", "an option was expected"]),
    "no such recipe": (["--config", "{tmp}/none.yaml"], ["config", "none.yaml", "there is no file"]),
    "a folder for a recipe": (["--config", "{tmp}/empty", "--pool", "{pool}"], ["config", "empty"]),
    "a recipe that is no YAML": (["--config", "{tmp}/broken.yaml"], ["config", "broken.yaml", "not YAML"]),
    "a recipe that is no text": (["--config", "{pool}/plain/00.png"], ["config", "00.png", "not YAML"]),
    "a recipe that is a list": (["--config", "{tmp}/list.yaml"], ["config", "list.yaml", "mapping"]),
    "seeds that are not there": (["--pool", "{pool}", "--seeds", "{tmp}/*.seed"], ["seeds.path", "*.seed", "nothing"]),
    "an encoder of no kind": (["--pool", "{pool}", "--encoder.copy", "sscd"], ["encoder 'sscd'", "builtin:copy"]),
    "an unknown built-in": (["--pool", "{pool}", "--encoder.copy", "builtin:x"], ["builtin:x", "builtin:layout"]),
    "an encoder not there": (["--pool", "{pool}", "--encoder.copy", "torchscript:{tmp}/no.pt"], ["encoder", "no.pt"]),
    "an unknown device": (
        ["--pool", "{pool}", "--encoder.copy", "torchscript:{tmp}/no.pt", "--encoder.device", "abacus"],
        ["device", "abacus", "auto or cpu"],
    ),
    "minus one worker": (["--pool", "{pool}", "--workers", "-1"], ["workers", "-1", "1 or more"]),
    "a word for the workers": (["--pool", "{pool}", "--workers", "all"], ["--workers", "'all'"]),
    "no such runner": (["--pool", "{pool}", "--runner", "abacus"], ["runner", "abacus", "threads or processes"]),
    "a runner that is no profile": (["--pool", "{pool}", "--runner", "{tmp}/list.yaml"], ["runner", "options"]),
    "a runner that is no YAML": (["--pool", "{pool}", "--runner", "{tmp}/broken.yaml"], ["runner", "broken.yaml"]),
    "out in the pool": (["--pool", "{pool}", "--out", "{pool}/run"], ["out", "inside pool", "beside it"]),
    "out is a file": (["--pool", "{pool}", "--out", "{tmp}/list.yaml"], ["out", "list.yaml"]),
    "out below a file": (["--pool", "{pool}", "--out", "{tmp}/list.yaml/run"], ["out", "cannot write", "list.yaml"]),
    "out holds something else": (
        ["--pool", "{pool}", "--out", "{tmp}"],
        ["out", "not empty and is not a run directory"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_it(roles, tmp_path, capsys, mistake):
    pools.write(tmp_path, {"broken.yaml": b"a: [1, {", "list.yaml": b"- 1\n- 2\n", "x.tar": pools.tar_of({})})
    (tmp_path / "empty").mkdir()
    words, fragments = MISTAKES[mistake]
    words = [word.format(tmp=tmp_path, pool=roles["pool"]) for word in words]
    words = [*([] if any(word.startswith("--out") for word in words) else ["--out", str(tmp_path / "run")]), *words]
    said = sentence(capsys, command.main(["curate", *words]))
    assert [fragment for fragment in fragments if fragment not in said] == []
    assert not (tmp_path / "run" / "pool").exists()


def test_unreadable_seeds_and_references_stop_the_run(roles, tmp_path, capsys):
    bad = pools.write(tmp_path / "bad", {"a.png": b"no image"})
    (tmp_path / "empty").mkdir()
    for role, folder in (("seeds", bad), ("references", bad), ("references", tmp_path / "empty")):
        status = pools.attempt({"pool": roles["pool"], role: folder}, tmp_path / "run")
        said = sentence(capsys, status)
        assert f"{role}: " in said
        assert "holds no readable image" in said


def test_out_of_another_pool_is_refused(run, roles, tmp_path, capsys):
    pool = pools.write(tmp_path / "pool", {"a.png": pools.picture(0)})
    before = run.hashes("ledger")
    assert "holds the run of another pool" in sentence(capsys, pools.attempt({"pool": pool}, run.path))
    assert run.hashes("ledger") == before
    shutil.copytree(run.path, tmp_path / "spoilt")
    (tmp_path / "spoilt" / "recipe.yaml").write_text("pool: {")
    assert "recipe.yaml" in sentence(capsys, pools.attempt({"pool": roles["pool"]}, tmp_path / "spoilt"))


# -- an encoder is exchanged -----------------------------------------------------------------------------------------


def test_another_encoder_never_mixes_with_stored_embeddings(roles, run, tmp_path):
    copied = pools.Run(str(shutil.copytree(run.path, tmp_path / "run")))
    words = [*pools.SMALL_UNITS, *pools.THRESHOLDS, "--encoder.copy", "builtin:layout"]
    pools.curate(roles, copied.path, *words)
    fresh = pools.curate(roles, tmp_path / "fresh", *words)
    assert copied.hashes("pool", "ledger", "dataset") == fresh.hashes("pool", "ledger", "dataset")
    widths = {len(row["embedding"]) for row in copied.table("pool")}
    assert widths == {pools.encoder_of("builtin:layout").dimension} != {pools.encoder_of("builtin:copy").dimension}


def tiny_vit(folder, seed):
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def test_other_weights_in_the_same_folder_are_another_encoder(roles, tmp_path):
    spec, words = f"hf:{tmp_path / 'vit'}", [*pools.SMALL_UNITS, *pools.THRESHOLDS]
    tiny_vit(tmp_path / "vit", 0)
    run = pools.curate(roles, tmp_path / "run", *words, "--encoder.retrieval", spec)
    first = run.times()
    assert pools.curate(roles, run.path, *words, "--encoder.retrieval", spec).times() == first
    tiny_vit(tmp_path / "vit", 1)
    second = pools.curate(roles, run.path, *words, "--encoder.retrieval", spec)
    redone = {name.split("/")[0] for name, stamp in second.times().items() if stamp != first.get(name)}
    assert {"features", "seeds", "nearest-0", "dataset"} <= redone
    assert not redone & {"pool", "join", "references", "survivors"}
    fresh = pools.curate(roles, tmp_path / "fresh", *words, "--encoder.retrieval", spec)
    assert second.hashes("features", "ledger", "dataset") == fresh.hashes("features", "ledger", "dataset")


# -- files that are no images ----------------------------------------------------------------------------------------

EVERYTHING = (
    "--retrieval.clusters",
    "3",
    "--semdedup.epsilon",
    "0.1",
    "--semdedup.clusters",
    "2",
    "--balance.target",
    "5",
    "--balance.levels",
    "[4, 2]",
    "--dedup.mirror",
    "true",
)


@pytest.mark.parametrize("words", [(), EVERYTHING, (*EVERYTHING, "--seeds.mode", "cluster", "--retrieval.refine", "1")])
def test_a_pool_that_the_filters_drop_is_an_empty_dataset_and_a_dead_letter(roles, tmp_path, words):
    pool = pools.write(tmp_path / "pool", {"broken.jpg": b"\xff\xd8\xff and no more", "small.png": pools.picture(0)})
    given = {**roles, "pool": pool} if words else {"pool": pool}
    run = pools.curate(given, tmp_path / "run", *words, "--filters.min_side", "1000")
    assert (run.facts["samples"], run.samples) == (0, [])
    assert {row["status"] for row in run.ledger.values()} == {"dead", "dropped"}
    (letter,) = run.table("dead-letter")
    assert (letter["uri"], letter["stage"]) == ("pool/broken.jpg", "decode")
    empty = datasets.load_dataset(str(run.path / "dataset"), split="train", streaming=True)
    assert list(empty) == []
    assert isinstance(empty.features["image"], datasets.Image)


UNREADABLE = {
    "one broken file": {"broken.jpg": b"\xff\xd8\xff and no more"},
    "companions alone": {"README.md": b"words", "LICENSE": b"words", "run.sh": b"words"},
    "hidden files alone": {".git/config": b"x", ".DS_Store": b"x"},
    "an empty shard": {"pool.tar": pools.tar_of({})},
    "a shard of texts": {"pool.tar": pools.tar_of({"a.txt": b"words", "b.txt": b"more"})},
    "an archive": {"pool.zip": b"PK"},
    "a list": {"list.csv": b"url\nhttp://127.0.0.1/x.png\n"},
}


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("role", ["pool", "references", "seeds"])
def test_a_set_without_an_image_stops_the_run_before_the_pool_is_read(roles, tmp_path, capsys, case, role):
    folder = pools.write(tmp_path / "set", UNREADABLE[case])
    given = {"pool": [str(roles["pool"])]}
    given[role] = [*given.get(role, []), str(folder)]
    said = sentence(capsys, pools.attempt(given, tmp_path / "run"))
    assert "no readable image" in said or "is not read" in said
    assert str(folder) in said
    assert not (tmp_path / "run" / "pool").exists()


def test_one_unreadable_set_among_several_stops_the_run(roles, tmp_path, capsys):
    bad = pools.write(tmp_path / "bad", {"a.png": b"no image"})
    given = {"pool": roles["pool"], "references": [str(roles["references"]), str(bad)]}
    said = sentence(capsys, pools.attempt(given, tmp_path / "run"))
    assert f"references: {bad}/, read as folder, holds no readable image (1 UnidentifiedImageError)" in said


def test_a_set_that_is_mostly_unreadable_says_so_everywhere(roles, tmp_path, capsys):
    broken = {f"{i}.png": b"no image" for i in range(3)}
    references = pools.write(tmp_path / "references", {**broken, "good.png": pools.picture(400)})
    run = pools.curate({"pool": roles["pool"], "references": references}, tmp_path / "run", *pools.THRESHOLDS)
    told = "3 of the 4 files of references (references) could not be read (3 UnidentifiedImageError)"
    assert any(note.startswith(told) for note in run.facts["notes"])
    assert told in " ".join(capsys.readouterr().err.split())
    page = (run.path / "report" / "index.html").read_text()
    assert told in page
    assert "Compared with <b>1</b> reference images of <bdi>references</bdi>" in page


def test_planted_copies_of_an_earlier_run_are_removed_as_leaks(tmp_path):
    first = pools.write(tmp_path / "first", {f"{i}.png": pools.picture(i) for i in range(4)})
    copies = {f"leak-{i}.png": pools.picture(i) for i in range(4)}
    second = pools.write(tmp_path / "second", {**copies, **{f"own-{i}.png": pools.picture(50 + i) for i in range(3)}})
    earlier = pools.curate({"pool": first}, tmp_path / "earlier", *pools.THRESHOLDS)
    for number, path in enumerate((earlier.path, earlier.path / "dataset")):
        run = pools.curate({"pool": second, "references": path}, tmp_path / f"run-{number}", *pools.THRESHOLDS)
        assert run.uris("dropped", "leaks") == {f"pool/{name}" for name in copies}
        (references,) = [row for row in run.facts["sources"] if row["role"] == "references"]
        assert (references["kind"], references["images"]) == ("parquet", 4)


class Tags(HTMLParser):
    """The pictures of a page whose source is no picture, and every handler of events."""

    def __init__(self, text):
        super().__init__()
        self.bad = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.bad += [name for name, value in attrs if name.startswith("on")]
        self.bad += [value for name, value in attrs if name == "src" and not (value or "").startswith("data:")]


def test_odd_files_are_dead_with_their_reason_and_hurt_nobody(tmp_path, capsys):
    pool = pools.write(
        tmp_path / "pool",
        {
            "bomb.png": pools.bomb(30_000),
            "<img src=x onerror=alert(1)>.png": pools.picture(0),
            "zero.png": b"",
            "<script>bad.png": b"?",
            "x.png/inside.png": pools.picture(1),
            "words.png": b"no image",
            "pool [bold]7[/nonsense].png": pools.picture(2),
        },
    )
    latin = os.path.join(os.fsencode(pool), b"caf\xe9.png")
    Path(os.fsdecode(latin)).write_bytes(pools.png(pools.picture(3)))
    (pool / "loop").symlink_to(pool, target_is_directory=True)
    (pool / "loop2").symlink_to(pool / "loop2")
    (pool / "nowhere.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(pool / "fifo.png")
    run = pools.curate({"pool": pool}, tmp_path / "run[/bold]")
    assert run.uris("dropped") == set()
    kept = {
        "pool/<img src=x onerror=alert(1)>.png",
        "pool/x.png/inside.png",
        "pool/pool [bold]7[/nonsense].png",
        "pool/caf\\udce9.png",
    }
    assert run.uris("kept") == kept
    dead = {uri.removeprefix("pool/"): run.ledger[uri]["reason"].split(":")[0] for uri in run.uris("dead")}
    assert dead == {
        "bomb.png": "TooManyPixels",
        "zero.png": "EmptyFile",
        "<script>bad.png": "UnidentifiedImageError",
        "words.png": "UnidentifiedImageError",
        "nowhere.png": "FileNotFoundError",
        "loop2": "OSError",
    }
    assert {row["uri"] for row in run.table("dead-letter")} == run.uris("dead")
    assert str(tmp_path) not in str(list(run.ledger.values()))
    assert Tags((run.path / "report" / "index.html").read_text()).bad == []
    capsys.readouterr()
    for name in ("pool/caf\\udce9.png", os.fsdecode(b"pool/caf\xe9.png")):
        assert command.main(["explain", str(run.path), name]) == 0
        assert "verdict     kept" in capsys.readouterr().out


def test_nothing_of_a_shard_is_written_outside_the_run(tmp_path):
    picture = pools.png(pools.picture(0))
    home = tmp_path / "home"
    home.mkdir()
    (home / "pool.tar").write_bytes(
        pools.tar_of(
            {
                "../up.png": picture,
                "../../upper.png": pools.png(pools.picture(1)),
                str(tmp_path / "absolute.png"): pools.png(pools.picture(2)),
                "inside.png": pools.png(pools.picture(3)),
            }
        )
    )
    run = pools.curate({"pool": home / "pool.tar"}, home / "run")
    assert len(run.ledger) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert sorted(path.name for path in home.iterdir()) == ["pool.tar", "run"]
    assert not list(run.path.rglob("*.png"))


# -- files that go away while the run is under way -------------------------------------------------------------------


def before(monkeypatch, stage, action):
    """Do something to the pool just before a stage runs."""
    inner = pools.run_in_a_loop

    def loop(self, plan, missing, combine):
        if plan.name == stage:
            action()
        inner(self, plan, missing, combine)

    monkeypatch.setattr(pools, "run_in_a_loop", loop)


@pytest.mark.parametrize("stage", ["features", "shards"])
@pytest.mark.parametrize("change", ["vanishes", "changes"])
def test_a_file_that_is_lost_on_the_way_is_dead_and_the_run_goes_on(roles, tmp_path, monkeypatch, stage, change):
    pool = Path(shutil.copytree(roles["pool"], tmp_path / "pool"))
    victim = pool / "plain" / "05.png"
    action = victim.unlink if change == "vanishes" else lambda: victim.write_bytes(pools.png(pools.picture(999)))
    before(monkeypatch, stage, action)
    run = pools.curate({**roles, "pool": pool}, tmp_path / "run", *pools.THRESHOLDS)
    row = run.ledger["pool/plain/05.png"]
    reason = {
        "vanishes": "FileNotFoundError: No such file or directory",
        "changes": "ChangedFile: the file changed while the run was under way",
    }[change]
    assert (row["status"], row["stage"], row["reason"]) == ("dead", stage, reason)
    letters = {letter["uri"]: letter for letter in run.table("dead-letter")}
    assert letters["pool/plain/05.png"]["stage"] == stage
    assert letters["pool/plain/05.png"]["error"] == reason.split(":")[0]
    assert "pool/plain/05.png" not in {sample["source"]["uri"] for sample in run.samples}
    flow = {line["stage"]: line for line in run.facts["flow"]}
    assert flow[stage]["dead"] == 1
    assert run.facts["samples"] == len(run.samples) == len(run.uris("kept"))


# -- a full disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size):
    """Let no file of this process grow past `size` bytes: what a full disk does, as EFBIG in place of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "lost", "cause"),
    [
        (30_000, "shards", "OSError: [Errno 27] File too large. The file system takes no file as large"),
        (100_000, "report", "cannot write to"),
        (300, "", "cannot write to"),
    ],
)
def test_a_full_disk_is_one_sentence_and_room_lets_the_run_finish(roles, run, tmp_path, capsys, size, lost, cause):
    copied = pools.Run(str(shutil.copytree(run.path, tmp_path / "run")))
    shutil.rmtree(copied.path / lost)
    words = [*pools.SMALL_UNITS, *pools.THRESHOLDS]
    with files_up_to(size):
        status = pools.attempt(roles, copied.path, *words, beam=True)
    said = sentence(capsys, status)
    assert cause in said
    assert "File too large" in said
    assert "free space" not in said
    assert not list(copied.path.rglob("*.tmp"))
    pools.curate(roles, copied.path, *words)
    assert copied.hashes("dataset", "ledger") == run.hashes("dataset", "ledger")


@pytest.mark.slow
def test_a_small_file_system_fills_and_is_enlarged(roles, run, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "granary", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    words = [*pools.SMALL_UNITS, *pools.THRESHOLDS]
    try:
        said = sentence(capsys, pools.attempt(roles, disk / "run", *words, beam=True))
        assert "No space left on device" in said
        assert "free space" in said
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        finished = pools.curate(roles, disk / "run", *words, beam=True)
        assert finished.hashes("dataset", "ledger") == run.hashes("dataset", "ledger")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_step_that_fails_is_one_sentence_and_finished_units_stay(roles, tmp_path, capsys, monkeypatch):
    from granary.curation.steps import leaks

    def fail(run, job, output):
        raise MemoryError

    monkeypatch.setattr(leaks, "write_survivors", fail)
    said = sentence(capsys, pools.attempt({"pool": roles["pool"]}, tmp_path / "run", *pools.THRESHOLDS))
    assert "stage survivors, unit 0 of 1: MemoryError" in said
    assert "--unit_rows" in said
    monkeypatch.undo()
    before = pools.Run(str(tmp_path / "run")).times()
    after = pools.curate({"pool": roles["pool"]}, tmp_path / "run", *pools.THRESHOLDS).times()
    assert before.items() <= after.items()
