"""What `auto` stands for: the model of the cache, of a Hub that answers in time, or layout and colour."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_hub import COMMIT, ModelHub

from granary.curation.encoders.choice import BY_LAYOUT, LAYOUT, MODEL

CHOOSE = """
import sys
from granary.curation.encoders.choice import choose_encoder
print(choose_encoder(offline=sys.argv[1:] == ["--offline"], tell=lambda line: print(line, file=sys.stderr)))
"""


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub() as server:
        yield server


def choose(endpoint: str, home: Path, *words: str, **environment: str) -> tuple[str, str]:
    """Return what a process of its own chooses, and what it tells."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    known = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE, *words],
        env=plain | known | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def test_the_model_is_downloaded_once_with_its_size_and_then_nothing_is_asked(hub: ModelHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = bytes(3_000_000)
    chosen, told = choose(hub.url, tmp_path)
    assert chosen == f"hf:{MODEL}?revision={COMMIT}"
    assert told == f"encoder.retrieval: {MODEL}, 3 MB, is downloaded once from {hub.url}"
    asked = len(hub.asked)
    assert choose(hub.url, tmp_path) == (chosen, "")
    assert choose(hub.url, tmp_path, "--offline") == (chosen, "")
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("words", "environment"), [(["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})], ids=["option", "environment"]
)
def test_offline_asks_nobody_and_says_what_pictures_are_matched_by(
    hub: ModelHub, tmp_path: Path, words: list[str], environment: dict[str, str]
) -> None:
    chosen, told = choose(hub.url, tmp_path, *words, **environment)
    assert chosen == LAYOUT
    assert told.endswith(f"the Hub may not be asked. {BY_LAYOUT}")
    assert hub.asked == []


def test_a_hub_that_is_silent_is_not_waited_for(hub: ModelHub, tmp_path: Path) -> None:
    hub.silent = 60
    started = time.monotonic()
    chosen, told = choose(hub.url, tmp_path)
    assert chosen == LAYOUT
    assert "the Hub did not" in told
    assert BY_LAYOUT in told
    assert time.monotonic() - started < 40  # a busy machine takes long to start a process


@pytest.mark.parametrize("fault", ["nobody there", "status 500", "a file is missing"])
def test_a_hub_that_does_not_send_the_model_is_no_error(hub: ModelHub, tmp_path: Path, fault: str) -> None:
    endpoint = "http://127.0.0.1:9" if fault == "nobody there" else hub.url
    hub.broken = fault == "status 500"
    if fault == "a file is missing":
        hub.files["preprocessor_config.json"] = b""
    chosen, told = choose(endpoint, tmp_path)
    assert chosen == LAYOUT
    assert told.endswith(BY_LAYOUT)
    assert "Traceback" not in told
