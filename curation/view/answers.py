"""What a page asks and is told, and the forms that its answers have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from granary.curation.errors import UserError
from granary.curation.store.addresses import json_without_secrets
from granary.curation.view.catalogue import Catalogue

BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """What the page asks.

    Args:
        method: GET or POST.
        path: below the token, without a slash in front.
        query: the parameters; of a name given twice the last.
        body: of a POST.
    """

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What the page is told.

    Args:
        body: the bytes.
        type: their media type.
        status: of HTTP.
        keep: seconds that the browser may keep it.
    """

    body: bytes
    type: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    keep: int = 0

    @staticmethod
    def plain(status: HTTPStatus, text: str) -> Answer:
        """Return an answer that says why there is no other."""
        return Answer(json.dumps({"error": text}).encode(), status=status)


def row_of(catalogue: Catalogue, text: str) -> int:
    """Return the row that a text names; raises UserError where it is none."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) >= len(catalogue):
        raise UserError(f"row: it is a number below {len(catalogue)}")
    return int(text)


def as_json(value: object) -> Answer:
    """Return a value as JSON without secrets of addresses; what is no finite number is null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return Answer(json_without_secrets(text).encode("utf-8", "replace"))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
