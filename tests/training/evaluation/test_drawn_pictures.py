"""What two models draw of pictures that one of them knows: what is told, what is compared, mistakes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from measuring import measure
from PIL import Image
from tiny_parts import parted_run
from tiny_trainings import tiny_training

from granary.curation.errors import UserError
from granary.training.evaluation.drawings import page
from granary.training.evaluation.protocols import reconstruction
from granary.training.evaluation.scores import Scores
from granary.training.methods.rcdm import RCDM
from granary.training.models.training import load_training

RESNET = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}
SMALL: dict[str, Any] = {"size": 16, "channels": 8, "multipliers": [1, 2], "attention": [], "blocks": 1}
FAST: dict[str, Any] = {"min_side": 5, "examples": 3, "drawings": 2, "steps": 4, "neighbours": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return parted_run(tmp_path_factory.mktemp("parted"), 100, per_class=5)


@pytest.fixture(scope="module")
def models(run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Diffusion models told by trainings on A and on B; one that drew attacked pictures; a recipe of another size."""
    root, settings = tmp_path_factory.mktemp("models"), {"model": RESNET, "workers": 0}
    told_by = {part: tiny_training("simclr", run, root / part, split=f"part={part}", **settings) for part in "AB"}
    for name, part, split in (("a", "A", "part=X"), ("b", "B", "part=X"), ("leaky", "A", "part=A")):
        tiny_training("rcdm", run, root / name, split=split, options={**SMALL, "teacher": told_by[part]})
    other = {"method": "rcdm", "options": {**SMALL, "teacher": told_by["B"], "size": 32}}
    (root / "other.yaml").write_text(yaml.safe_dump(other))
    return {**{path.name: str(path) for path in root.iterdir()}, "other": f"random:{root}/other.yaml"}


def scores(run: str, models: dict[str, str], **options: Any) -> Scores:
    given = {"reference": models["b"], **FAST, **options}
    return measure(reconstruction, options.pop("model", models["a"]), run, device="cpu", **given)


def test_drawings_are_compared_with_their_pictures_and_with_public_ones(
    run: str, models: dict[str, str], tmp_path: Path
) -> None:
    found = scores(run, models, page=str(tmp_path / "page.png"))
    ids = found.settings["ids"]
    assert found["pictures"] == len(ids) >= 2  # one may have no crop
    assert found["copied.chance"] == 1 / (found["pictures.public"] + 1)
    rows = [row for path in sorted(Path(run, "dataset/data").iterdir()) for row in pq.read_table(path).to_pylist()]
    named, public = {row["id"]: row for row in rows}, [row for row in rows if row["part"] == "X"]
    assert all(named[name]["part"] == "A" for name in ids)

    def pixels(row: Any) -> Any:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        planes = torch.nn.functional.interpolate(planes, (16, 16), mode="bicubic", antialias=True)
        return planes[0].double() / 255

    nearest = [min(float((pixels(named[name]) - pixels(row)).square().mean().sqrt()) for row in public) for name in ids]
    assert found["distance.public"] == pytest.approx(sum(nearest) / len(ids), rel=1e-4)
    sheet = Image.open(tmp_path / "page.png")
    assert sheet.size == (8 * 102 + 6, len(ids) * 102 + 6 + 16)
    again = scores(run, models)
    assert dict(again) == dict(found)
    assert dict(scores(run, models, batch=1)) == pytest.approx(dict(found), rel=1e-4)


def test_one_model_twice_draws_the_same(run: str, models: dict[str, str]) -> None:
    found = scores(run, models, reference=models["a"])
    assert found["distance"] == found["distance.reference"]
    assert found["closer"] == 0


def test_what_dejavu_lists_is_drawn(run: str, models: dict[str, str], tmp_path: Path) -> None:
    first = scores(run, models, examples=3).settings["ids"][1]
    told = {"dejavu": {"projector.score_20": 0.1}}
    told["settings"] = {"used": {"dejavu": {"memorised": {"A": [{"id": first}], "B": []}}}}  # type: ignore[dict-item]
    (tmp_path / "dejavu.json").write_text(json.dumps(told))
    assert scores(run, models, known=str(tmp_path / "dejavu.json")).settings["ids"] == [first]
    with pytest.raises(UserError, match=r"options\.known: .* lists no picture of part B as known by heart"):
        scores(run, models, known=str(tmp_path / "dejavu.json"), part="B")


def test_mistakes_are_sentences(run: str, models: dict[str, str]) -> None:
    for options, says in (
        ({"reference": None}, r"options\.reference: missing"),
        ({"part": "S"}, r"options\.part: 'S' is not right; the parts are A, B"),
        ({"reference": models["other"]}, r"is no twin of .*: options\.size is 32, not 16"),
        ({"reference": models["A"]}, "is no training of rcdm"),
        ({"reference": models["leaky"]}, "was trained on .* pictures that are not of part X"),
        ({"dtype": "int8"}, "dtype: 'int8' is not right"),
        ({"boxes": "regions"}, "has no column 'regions'"),
    ):
        with pytest.raises(UserError, match=says):
            scores(run, models, **options)


def test_a_training_comes_back_with_what_it_was_told_by(models: dict[str, str]) -> None:
    model, source = load_training(models["a"]), load_training(models["A"])
    assert isinstance(model, RCDM)
    kept = model.teacher.method.evaluated_model().state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in source.evaluated_model().state_dict().items())


def test_a_page_has_a_cell_for_each_picture() -> None:
    grey = np.full((4, 4, 3), 90, np.uint8)
    sheet = Image.open(io.BytesIO(page([[("a", grey), ("a", grey), ("b", grey)]], 4)))
    assert sheet.size == (3 * 102 + 6, 102 + 6 + 16)
    assert sheet.getpixel((60, 60)) == (90, 90, 90)
