"""What the filters of quality catch: `python -m tests.benchmarks.quality`.

Reads the folder `shared/data` beside the checkout: 1,000 photographs, one of each class of ImageNet, at most 256 px,
and 700 of Flickr8k at most 200 px, all taken for good. Of each third photograph it makes pictures with known faults
(blurred, darkened, overexposed, nearly of one grey) and prints for each filter the share of these that several limits
drop, beside the share of good pictures lost; `*` marks the limit that docs/curate.md recommends. The last row is what
cleanvision, where it is installed, flags of the same files.
"""

from __future__ import annotations

import importlib.util
import io
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
from PIL import Image, ImageFilter

from granary.curation.images.decode import decode
from granary.curation.images.filters import MEASURES, SIDE, Filters, Quality, measure, small_copy
from granary.curation.images.limits import DecodeLimits
from tests.benchmarks.copies import flickr, zipped

STEP = 3  # faults are made of each third picture
LIMITS: Mapping[str, Sequence[float]] = {
    "blur": (50, 100, 150, 200, 250, 300, 400),
    "dark": (40, 60, 80, 100, 120),
    "bright": (120, 140, 160, 180, 200),
    "entropy": (2, 3, 4, 5, 6),
}
PEER = {"blur": "blurry", "dark": "dark", "bright": "light", "entropy": "low_information"}  # in cleanvision
Fault = Callable[[Image.Image, np.random.Generator], Image.Image]


def blurred(share: float) -> Fault:
    """Return a Gaussian blur whose standard deviation is a share of the short side."""
    return lambda image, random: image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def exposed(stops: float) -> Fault:
    """Return a change of exposure by stops, of linear light (sRGB taken for a power of 2.2), clipped at white."""
    table = [round(255 * min(1.0, ((level / 255) ** 2.2 * 2.0**stops) ** (1 / 2.2))) for level in range(256)] * 3
    return lambda image, random: image.point(table)


def nearly_uniform(share: float) -> Fault:
    """Return a picture that keeps a share of its contrast around its mean grey, with the noise of a sensor (std 1)."""

    def fault(image: Image.Image, random: np.random.Generator) -> Image.Image:
        levels = np.asarray(image, np.float64)
        flat = levels.mean() + share * (levels - levels.mean()) + random.standard_normal(levels.shape)
        return Image.fromarray(np.clip(np.rint(flat), 0, 255).astype(np.uint8))

    return fault


FAULTS: Mapping[str, Mapping[str, Fault]] = {
    "blur": {f"blurred {share:.1%}": blurred(share) for share in (0.005, 0.01, 0.015, 0.02, 0.03)},
    "dark": {f"{-stops} stops down": exposed(stops) for stops in (-2, -3, -4, -5, -6)},
    "bright": {f"{stops} stops up": exposed(stops) for stops in (2, 3, 4, 5, 6)},
    "entropy": {f"contrast {share:.0%}": nearly_uniform(share) for share in (0.1, 0.05, 0.02, 0.0)},
}


def encoded(picture: Image.Image) -> bytes:
    """Return a picture as a JPEG file of quality 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def measured(files: Sequence[bytes]) -> list[Quality]:
    """Measure pictures as a run does."""
    decoded = [decode(file, DecodeLimits(), SIDE) for file in files]
    return measure([small_copy(one.image) for one in decoded], [(one.width, one.height) for one in decoded])


def dropped(qualities: Sequence[Quality], option: str, limit: float) -> float:
    """Return the share that one filter drops."""
    filters = Filters.model_validate({option: limit})
    return float(np.mean([filters.reject(quality) is not None for quality in qualities]))


def flagged(files: Sequence[bytes], issue: str) -> float:
    """Return the share that cleanvision flags for an issue, at its own threshold."""
    from cleanvision import Imagelab

    silence = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(silence), redirect_stderr(silence):
        for number, file in enumerate(files):
            (pathlib.Path(folder) / f"{number:05d}.jpg").write_bytes(file)
        lab = Imagelab(data_path=folder, verbose=False)
        lab.find_issues({issue: {}}, n_jobs=1, verbose=False)
    return float(lab.issues[f"is_{issue}_issue"].mean())


def compare(sets: Mapping[str, Sequence[bytes]], option: str) -> None:
    """Print what limits of one filter drop, as a table, and below what cleanvision flags where it is installed.

    Args:
        sets: files by name of their set.
        option: the filter.
    """
    qualities = {name: measured(files) for name, files in sets.items()}
    best = next(each for each in MEASURES if each.option == option).recommended
    print(f"\nfilters.{option}: percent dropped")
    print("limit".rjust(12), *(name.rjust(14) for name in sets))
    for limit in LIMITS[option]:
        shares = [f"{100 * dropped(some, option, limit):.1f}".rjust(14) for some in qualities.values()]
        print(f"{limit:g}{'*' if limit == best else ''}".rjust(12), *shares)
    if importlib.util.find_spec("cleanvision"):
        shares = [f"{100 * flagged(files, PEER[option]):.1f}".rjust(14) for files in sets.values()]
        print("cleanvision".rjust(12), *shares)


def main(step: int = STEP) -> None:
    """Print all tables."""
    random = np.random.default_rng(0)
    photos = [picture for _, picture in zipped("photos_dev.zip")][::step]
    good = {"good photos": photos, "good Flickr8k": flickr()[::step]}
    for option, faults in FAULTS.items():
        faulty = {name: [fault(picture, random) for picture in photos] for name, fault in faults.items()}
        compare({name: list(map(encoded, pictures)) for name, pictures in {**good, **faulty}.items()}, option)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STEP)
