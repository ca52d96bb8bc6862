"""Encoders and devices that cannot be used are said before the pool is read."""

from __future__ import annotations

from pathlib import Path

import pools
import pytest

from granary.curation.steps import listing
from granary.pipelines import command

SEEDED = ("--seeds", "{pool}", "--encoder.retrieval")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--encoder.device", "cuda:99"), "encoder.device is 'cuda:99', which is not available here; give auto or cpu"),
        (("--encoder.device", "warp"), "encoder.device is 'warp', which is not available here"),
        (("--encoder.device", "meta"), "encoder.device is 'meta', which is not available here"),
        (("--encoder.copy", "hf:/no/such/folder"), "there is no folder '/no/such/folder'"),
        (("--encoder.copy", "granary:/no/such/folder"), "saved by granary"),
        ((*SEEDED, "torchscript:/no/such/file.pt"), "there is no file '/no/such/file.pt'"),
        ((*SEEDED, "hf:{pool}"), "no vision model with safetensors weights"),
        ((*SEEDED, "builtin:colour"), "is not built in"),
    ],
)
def test_what_cannot_embed_is_said_before_the_pool_is_read(
    words: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool = pools.write(tmp_path / "pool", {f"{number}.png": pools.picture(number) for number in range(3)})

    def read(*_: object) -> None:
        raise AssertionError("the pool was listed")

    monkeypatch.setattr(listing, "write_listing", read)
    given = [word.format(pool=pool) for word in words]
    assert command.main(["curate", "--pool", str(pool), "--out", str(tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
