"""What names an encoder: its parts, and the same name from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a folder `models`."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("torchscript:sscd.pt?resize=square&batch=2", "torchscript:{here}/sscd.pt?resize=square&batch=2"),
        ("torchscript:models/../sscd.pt", "torchscript:{here}/sscd.pt"),
        ("torchscript:/weights/sscd.pt", "torchscript:/weights/sscd.pt"),
        ("granary:~/vit?pool=mean", "granary:{here}/home/vit?pool=mean"),
        ("granary:s3://bucket/vit?pool=mean", "granary:s3://bucket/vit?pool=mean"),
        ("hf:./models", "hf:{here}/models"),
        ("hf:models?pool=cls", "hf:{here}/models?pool=cls"),
        ("hf:facebook/dinov2-base?dtype=bfloat16", "hf:facebook/dinov2-base?dtype=bfloat16"),
        ("builtin:copy", "builtin:copy"),
    ],
)
def test_a_local_path_means_the_same_from_another_folder(here, text, wanted):
    found = EncoderSpec.parse(text).anywhere
    assert found == wanted.format(here=here)
    assert EncoderSpec.parse(found).options == EncoderSpec.parse(text).options
    assert EncoderSpec.parse(found).anywhere == found


def test_a_spec_without_a_target_is_a_mistake():
    with pytest.raises(UserError, match="names nothing to load"):
        EncoderSpec.parse("torchscript")
