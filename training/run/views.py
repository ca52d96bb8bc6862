"""The pictures that the models of a method are given, as a sheet to look at: after cropping and augmentation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from granary.curation.report.thumbnails import contact_sheet
from granary.curation.store import storage
from granary.training.data.collate import Part
from granary.training.models.backbone import Backbone

PICTURES = 4  # rows of the sheet
VIEWS = 12  # of a picture at most
SIDE = 96  # pixels of a view


@contextlib.contextmanager
def keeping_views(method: nn.Module, batch: Part, pieces: int, url: str) -> Iterator[None]:
    """Write a sheet of the views of the first pictures of a batch that a method works on in this context.

    Args:
        method: whose backbones are watched in its first call: each shape of what they are given is a kind of view, of
            which the same pixels count once. Where none is given pictures, the sheet has them as the workers cut them.
        batch: of this process.
        pieces: that it is worked on in.
        url: of the sheet, a JPEG.
    """
    count, given = len(batch["id"]) // pieces, dict[tuple[int, ...], list[Tensor]]()
    calls = itertools.count()

    def note(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pixels = inputs[0].detach()
        if isinstance(model, Backbone) and not len(pixels) % count:
            views = unnormalised(by_picture(pixels, count), model.config.mean, model.config.std)
            kind = given.setdefault(tuple(pixels.shape), [])
            if not any(torch.equal(views, earlier) for earlier in kind):
                kind.append(views)

    def stop(method: nn.Module, inputs: object) -> None:
        if next(calls):
            remove(hooks)

    hooks = [method.register_forward_pre_hook(stop)]
    hooks += [module.register_forward_pre_hook(note) for module in method.modules() if isinstance(module, Backbone)]
    try:
        yield
    finally:
        remove(hooks)
    kinds = [torch.cat(views, dim=1) for views in given.values()] or list(as_cut(batch))
    if kinds:
        storage.write_bytes(url, sheet(kinds))


def remove(hooks: Iterable[RemovableHandle]) -> None:
    """Remove hooks; those that are removed already stay so."""
    for hook in hooks:
        hook.remove()


def by_picture(pixels: Tensor, count: int) -> Tensor:
    """Return the views of the first pictures, (P, V, 3, S, S), of stacked views (V * B, 3, S, S), row v * B + b.

    Args:
        pixels: the stacked views.
        count: B.
    """
    return pixels.unflatten(0, (-1, count))[:VIEWS, :PICTURES].transpose(0, 1)


def unnormalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised pictures (..., 3, S, S) as they were, in 0..1, on the CPU."""
    shape = (3, 1, 1)
    pixels = pixels.float().cpu()
    return (pixels * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)


def as_cut(batch: Part) -> Iterator[Tensor]:
    """Yield the views of the first pictures as the workers cut them, (P, V, 3, S, S) in 0..1, kind by kind."""
    for views in batch.values():
        if isinstance(views, Tensor) and views.dtype == torch.uint8 and views.ndim == 5:
            yield views[:PICTURES, :VIEWS].permute(0, 1, 4, 2, 3).float().cpu() / 255


def sheet(kinds: Sequence[Tensor]) -> bytes:
    """Return a JPEG with a row for each picture.

    Args:
        kinds: for each kind of view (P, V, 3, S, S) in 0..1.
    """
    rows = [[view for views in of_picture for view in views][:VIEWS] for of_picture in zip(*kinds, strict=True)]
    views = [(view * 255).round().byte().permute(1, 2, 0).numpy() for row in rows for view in row]
    return contact_sheet([Image.fromarray(view) for view in views], len(rows[0]), SIDE)
