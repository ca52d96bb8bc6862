"""Readers: each format of dense annotations to one form in memory.

A reader lists the records of a path (`records`: one per image, with its text where the format keeps many in one file)
and reads one (`parse`). Nothing here opens a picture.
"""

from __future__ import annotations

from types import ModuleType

from granary.curation.dense.readers import coco, dci, jsonl, narratives

READERS: dict[str, ModuleType] = {"dci": dci, "coco": coco, "narratives": narratives, "jsonl": jsonl}
