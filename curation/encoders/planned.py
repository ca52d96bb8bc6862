"""The encoders of a run: loaded once before any work, and once in each process that embeds."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping

from granary.curation.encoders import Encoder, load_encoder
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.runs.run import undigested

KEPT = 4  # encoders that a process keeps

_loaded: dict[tuple[PlannedEncoder, str], Encoder] = {}
_loading = threading.Lock()


@dataclasses.dataclass(frozen=True)
class PlannedEncoder:
    """An encoder as it was when the run was planned: what a work unit needs to load the same one.

    Args:
        spec: the text that names it, local paths absolute.
        fingerprint: of all that decides its output.
        loader: "module:name" of what loads it, of a kind that `granary.curation.encoders` does not know.
    """

    spec: str
    fingerprint: str
    loader: str = undigested("")


def plan_encoder(text: str, device: str, loaders: Mapping[str, str] | None = None) -> PlannedEncoder:
    """Load an encoder before any work; `encoder_of` in this process gives the same one.

    Args:
        text: what names it in a recipe.
        device: "auto" or a torch device.
        loaders: "module:name" of what loads a kind, for kinds that `granary.curation.encoders` does not know.

    Raises:
        UserError: it cannot be loaded.
    """
    spec = EncoderSpec.parse(text)
    loader = (loaders or {}).get(spec.kind, "")
    encoder = load_encoder(spec.anywhere, device, loader)
    planned = PlannedEncoder(spec.anywhere, encoder.fingerprint, loader)
    with _loading:
        _keep(planned, device, encoder)
    return planned


def encoder_of(planned: PlannedEncoder, device: str) -> Encoder:
    """Return an encoder, loaded once per process.

    Raises:
        ValueError: it is not the one the run was planned with.
    """
    with _loading:
        if (planned, device) not in _loaded:
            encoder = load_encoder(planned.spec, device, planned.loader)
            if encoder.fingerprint != planned.fingerprint:
                raise ValueError(
                    f"encoder {planned.spec} is not the one this run was planned with: its weights or settings differ "
                    "here"
                )
            _keep(planned, device, encoder)
        return _loaded[planned, device]


def _keep(planned: PlannedEncoder, device: str, encoder: Encoder) -> None:
    """Keep an encoder, and of the others the latest."""
    _loaded.pop((planned, device), None)
    _loaded[planned, device] = encoder
    for oldest in list(_loaded)[:-KEPT]:
        del _loaded[oldest]
