"""The card of a pack run names the dataset whose format was read, and no other."""

from __future__ import annotations

from typing import get_args

import pytest

from granary.curation.dense.recipe import Format, PackRecipe
from granary.curation.dense.summary import card

SAID = {
    "dci": "2312.08578",
    "coco": "1405.0312",
    "narratives": "2405.02793",
    "jsonl": "one's own",
    "vqa": "1612.00837",
    "gqa": "1902.09506",
    "pope": "2305.10355",
    "llava": "2304.08485",
    "winoground": "2204.03162",
}


@pytest.mark.parametrize("name", get_args(Format))
def test_a_card_names_what_was_read(name: Format) -> None:
    recipe = {"format": name, "annotations": "a", "images": "i", "out": "o"}
    said = card(PackRecipe.model_validate(recipe), "words")["method"]
    assert SAID[name] in said
    assert name == "dci" or not said.startswith("Densely Captioned Images")
