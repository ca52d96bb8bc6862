"""A model that could not be downloaded is not called a wrong one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from places import ROOT

from granary.curation.encoders.inference import reason

CALL = "import sys; from granary.pipelines.command import main; sys.exit(main(sys.argv[1:]))"


def told(cause: Exception) -> OSError:
    """Return what a library says of a model because of something else."""
    try:
        try:
            raise cause
        except type(cause) as first:
            raise OSError("org/model does not appear to have a file named config.json\nand more") from first
    except OSError as error:
        return error


@pytest.mark.parametrize(
    "cause",
    [LocalEntryNotFoundError("no copy"), OfflineModeIsEnabled("offline"), ConnectionRefusedError(111, "refused")],
)
def test_a_hub_out_of_reach_is_the_reason(cause):
    assert "the Hugging Face Hub cannot be reached" in reason(told(cause))
    assert "the Hugging Face Hub cannot be reached" in reason(cause)


@pytest.mark.parametrize("cause", [KeyError("a"), FileNotFoundError(2, "no such file")])
def test_any_other_reason_is_told_in_its_first_line(cause):
    assert reason(told(cause)) == "org/model does not appear to have a file named config.json"
    assert reason(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    "words",
    [
        ["curate", "--pool", "pool", "--encoder.copy", "hf:org/model"],
        pytest.param(
            ["curate", "--pool", "pool", "--encoder.copy", "hf:org/model", "--encoder.retrieval", "hf:org/other"],
            marks=pytest.mark.slow,
        ),
        ["sample", "--data", "pool", "--model", "org/diffusion", "--classifier", "org/classifier"],
    ],
)
def test_a_command_says_so_in_one_sentence(tmp_path, words):
    (tmp_path / "pool" / "a").mkdir(parents=True)
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "pool" / "a" / "a.png")
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", CALL, *words, "--out", str(tmp_path / "run")]
    done = subprocess.run(call, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the Hugging Face Hub cannot be reached" in done.stderr.strip().splitlines()[-1]
