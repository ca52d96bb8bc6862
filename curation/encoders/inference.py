"""What the encoders with weights share: the device, extreme pictures, unit rows, content hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError

from granary.curation.errors import UserError
from granary.curation.store.storage import open_read

# What loading a model raises where its files are cut short, hold wrong numbers or need packages that are not there.
UNLOADABLE = (
    ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError, SafetensorError,
    StrictDataclassError, TypeError, ValueError,
)  # fmt: skip

OUT_OF_REACH = {  # by name: these are errors of several clients of HTTP
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "ReadTimeout",
}


def torch_device(name: str) -> torch.device:
    """Return the torch device: "auto" is CUDA when there is one, else CPU; UserError when it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device is '{name}', which is not available here; give auto or cpu") from error
    return device


def reason(error: BaseException) -> str:
    """Return why something could not be loaded: the first line of an error, its class where it says nothing.

    Libraries say of a model they could not download that it lacks a file; what they were told first says more.
    """
    if any(kind.__name__ in OUT_OF_REACH for cause in causes(error) for kind in type(cause).__mro__):
        return "the Hugging Face Hub cannot be reached, and its cache on this machine has no copy"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and what it was raised because of, one after the other."""
    return [] if error is None else [error, *causes(error.__cause__ or error.__context__)]


def workable(image: Image.Image, aspect: float = 4.0, least: int = 8) -> Image.Image:
    """Cut the middle out of a picture longer than `aspect` : 1 and widen sides below `least` pixels.

    A resize by the short edge would turn a 1 x 5000 line into gigabytes; the centre crop that follows keeps less.
    """
    width, height = image.size
    wide, high = min(width, round(aspect * height)), min(height, round(aspect * width))
    if (wide, high) != (width, height):
        left, top = (width - wide) // 2, (height - high) // 2
        image = image.crop((left, top, left + wide, top + high))
    if min(image.size) < least:
        image = image.resize((max(image.width, least), max(image.height, least)), Image.Resampling.NEAREST)
    return image.convert("RGB")


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return an RGB picture as (h, w, 3) float32, (value - mean) / std of each channel in 0..1."""
    pixels = np.asarray(image, np.float32) / 255
    return (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)


def finite_unit_rows(rows: torch.Tensor) -> np.ndarray:
    """Return (n, d) float32 unit rows on the CPU; what is not finite counts as 0, a zero row becomes the first axis."""
    values = np.nan_to_num(rows.float().cpu().numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    first = np.eye(1, values.shape[1], dtype=np.float32)
    return np.where(norms > 1e-12, values / np.maximum(norms, 1e-12), first).astype(np.float32)


def probed_dimension(name: str, embed: Callable[[Sequence[Image.Image]], np.ndarray]) -> int:
    """Return the length of the vector of a trial picture; UserError when the model cannot take it."""
    try:
        return embed([Image.new("RGB", (64, 64))]).shape[1]
    except UNLOADABLE as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"encoder '{name}' could not embed a picture ({last}); it must map (n, 3, h, w) to (n, d), and its "
            "preprocessing must fit the model"
        ) from error


def fingerprint(files: Iterable[str], *choices: object) -> str:
    """Return the sha256 (hex) of the contents of `files`, read in pieces, and of the printed `choices`."""
    digest = hashlib.sha256(repr(choices).encode())
    for file in files:
        with open_read(file) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
