"""`granary publish TRAIN` with the real clients against a stand-in of the Hub, and the model loaded from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_trainings import tiny_run, tiny_training

from granary.pipelines.command import main
from tests.hub_stand_in import TOKEN, Hub

REPO = "org/shapes"
ALL = """
import sys, torch, transformers, granary
from granary.pipelines.command import main

train, name = sys.argv[1:]
words = ["publish", train, "--repo", name, "--licence", "mit"]
for more in (["--dry-run"], [], []):
    assert main([*words, *more]) == 0
    print("---")
ours, theirs = granary.load_training(train), granary.load_training(f"hf:{name}")
assert type(ours) is type(theirs)
state = theirs.state_dict()
assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
model = transformers.AutoModelForImageClassification.from_pretrained(name)
assert list(model.config.id2label.values()) == ours.classes
pixels = torch.randn(2, 3, 16, 16)
torch.testing.assert_close(model(pixels).logits, ours.head(ours.encoder(pixels).cls))
torch.testing.assert_close(granary.load_model(f"hf:{name}")(pixels).cls, ours.encoder(pixels).cls)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    tiny_training("supervised", tiny_run(folder / "run"), folder / "out", name="shapes")
    return folder / "out"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def test_a_published_training_comes_back_whole(hub: Hub, trained: Path, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environ = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    words = [sys.executable, "-c", ALL, str(trained), REPO]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    dry, sent, again, _ = done.stdout.split("---\n")
    assert "checkpoints/step-000000002/training.safetensors" in dry
    assert f"{hub.url}/{REPO} would be created" in dry
    assert sent == again == f"{hub.url}/{REPO}\n"
    parts = [f"Add shapes, part {number} of 2" for number in (1, 2)]
    assert hub.titles(REPO)[1:] == [*parts, "Complete shapes: 6 files of weights"]
    assert "0 files sent" in done.stderr
    assert set(hub.puts.values()) == {1}
    assert json.loads(hub.head(REPO)["granary.json"])["complete"]


def test_what_a_training_has_not_and_no_licence_are_sentences(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(trained), "--repo", REPO, "--ledger", "--licence", "mit"]) == 2
    assert "ledger: a training has none" in capsys.readouterr().err
    assert main(["publish", str(trained), "--repo", REPO]) == 2
    assert "the card states no licence; give --licence" in capsys.readouterr().err


def test_the_template_of_a_model_is_printed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(trained), "--print-template"]) == 0
    assert "granary.load_training" in capsys.readouterr().out
    assert main(["publish", "--print-template"]) == 0
    assert "load_dataset" in capsys.readouterr().out
