"""`granary encoders`: what is there, and how fast it is."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from granary.curation.encoders import Encoder, load_encoder
from granary.curation.encoders.choice import LAYOUT, MODEL
from granary.curation.errors import UserError
from granary.pipelines import command
from granary.pipelines.cli import encoders


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "SECONDS", 0.01)


def test_what_is_here_is_measured_and_nothing_is_downloaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granary.curation.encoders.choice.cached_revision", lambda model: "")
    assert command.main(["encoders"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if ":" in line}
    assert list(lines) == [known.spec for known in encoders.KNOWN]
    assert {f"hf:{MODEL}", LAYOUT} <= set(lines)
    for spec in ("builtin:copy", "builtin:layout"):
        encoder = load_encoder(spec)
        shown = re.search(r"(\d+)\s+apache-2.0\s+([\d.]+), ([\d.]+)\s+(\d+)\s*$", lines[spec])
        assert shown
        assert (int(shown[1]), int(shown[4]) > 0) == (encoder.dimension, True)
        assert (float(shown[2]), float(shown[3])) == (encoder.copy_threshold, encoder.leak_threshold)
    assert re.search(r" 384 .*not on this machine", lines["hf:facebook/dinov2-small"])


def test_the_speed_counts_pictures_but_not_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting:
        """Counts the pictures of each call."""

        def embed(self, images: list[Image.Image]) -> None:
            calls.append(len(images))

    clock = iter([0.0, 0.0, 0.004, 0.016])  # begin, then before each call and at the end
    monkeypatch.setattr(encoders.time, "perf_counter", lambda: next(clock))
    assert encoders.speed(Counting()) == pytest.approx(2 * encoders.PICTURES / 0.016)  # type: ignore[arg-type]
    assert calls == [encoders.PICTURES] * 3


def test_what_is_named_is_measured_or_said_to_be_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["encoders", "builtin:copy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert command.main(["encoders", "builtin:colour"]) == 2
    assert "builtin:colour" in capsys.readouterr().err


def test_a_cached_model_that_is_broken_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(spec: str, device: str, loader: str) -> Encoder:
        if spec.startswith("hf:"):
            raise UserError("the weights are cut off")
        return load_encoder(spec, device, loader)

    monkeypatch.setattr("granary.curation.encoders.choice.cached_revision", lambda model: "0" * 40)
    monkeypatch.setattr("granary.curation.encoders.load_encoder", broken)
    assert command.main(["encoders"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("cannot be loaded") == 3
    assert "torchscript:" in shown
    assert command.main(["encoders", "hf:facebook/dinov2-small"]) == 2
    assert "the weights are cut off" in capsys.readouterr().err
