"""The command that lists encoders: what each is for, and how fast it is here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from granary.curation.errors import UserError
from granary.pipelines.cli.plain_command import PlainCommand

if TYPE_CHECKING:
    from PIL import Image

    from granary.curation.encoders import Encoder

PICTURES, SIDE, SECONDS = 32, 256, 1.0  # what the speed is measured on, and for how long at least


class Known(NamedTuple):
    """An encoder that can be had.

    Args:
        spec: as it is written in a recipe.
        purpose: what it is for.
        dimension: length of its vectors, where it need not be here to be known.
        licence: of its weights, as the Hub names it.
    """

    spec: str
    purpose: str
    dimension: int | None = None
    licence: str = ""


KNOWN = (
    Known("builtin:copy", "deduplication and leaks; the default", licence="apache-2.0"),
    Known("builtin:layout", "retrieval by layout and colour, offline", licence="apache-2.0"),
    Known("hf:facebook/dinov2-small", "retrieval by what is shown; the default (auto)", 384, "apache-2.0"),
    Known("hf:facebook/dinov2-base", "retrieval", 768, "apache-2.0"),
    Known("hf:facebook/dinov2-large", "retrieval", 1024, "apache-2.0"),
    Known("torchscript:sscd_disc_mixup.torchscript.pt", "deduplication by a learned descriptor (SSCD)", 512, "mit"),
)


def _encoders(specs: Sequence[str], device: str) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("written", "for", "dimension", "licence", "copies, leaks above", "pictures/s here", box=None)
    for known in map(Known, specs, [""] * len(specs)) if specs else KNOWN:
        table.add_row(*row(known, device, named=bool(specs)))
    Console(width=160, highlight=False, markup=False).print(table)
    return 0


def row(known: Known, device: str, named: bool) -> Iterator[str]:
    """Yield the cells of an encoder.

    Args:
        known: what is known without loading it.
        device: "auto" or a torch device.
        named: whether the user named it: it is then loaded, and downloaded where it must be.

    Raises:
        UserError: it was named and cannot be loaded.
    """
    from granary.curation.encoders import load_encoder
    from granary.curation.encoders.choice import cached_revision
    from granary.pipelines.engine.encoders import LOADERS

    kind, _, target = known.spec.partition(":")
    here = named or kind == "builtin" or (kind == "hf" and cached_revision(target) != "")
    yield from (known.spec, known.purpose)
    try:
        encoder = load_encoder(known.spec, device, LOADERS.get(kind, "")) if here else None
    except UserError:  # why is told when it is named
        if named:
            raise
        yield from (str(known.dimension), known.licence, "", "cannot be loaded")
        return
    if encoder is None:
        yield from (str(known.dimension), known.licence, "", "not on this machine")
        return
    yield from (str(encoder.dimension), known.licence)
    yield f"{encoder.copy_threshold:g}, {encoder.leak_threshold:g}"
    yield f"{speed(encoder):.0f}"


def speed(encoder: Encoder) -> float:
    """Return the pictures of 256 x 256 that an encoder takes in a second of this process, decoding not counted."""
    pictures = list(_pictures())
    encoder.embed(pictures)  # what is done once is not counted
    begin, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < SECONDS or not done:
        encoder.embed(pictures)
        done += len(pictures)
    return done / passed


def _pictures() -> Iterator[Image.Image]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for _ in range(PICTURES):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        yield small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


encoders = PlainCommand(
    "encoders",
    _encoders,
    "List what turns pictures into vectors: what each is for, the length of its vectors, its licence, the cosines "
    "above which pictures count as copies and as leaks, and how many pictures a second it takes here. Nothing "
    "is downloaded, but for encoders that are named.",
    [
        click.Argument(["specs"], nargs=-1, metavar="[KIND:WHAT...]"),
        click.Option(["--device"], default="auto", metavar="DEVICE", help="auto, or a torch device such as cuda:1"),
    ],
    ["granary encoders", "granary encoders builtin:copy granary:runs/first"],
)
