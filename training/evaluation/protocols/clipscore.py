"""CLIPScore: how well captions fit their pictures by the cosine of an image-text model, with and without references.

Hessel et al. 2021 (arXiv 2104.08718). Evaluate with another model than the one that the captions were chosen or written
by. Shapes: N pictures, D dimensions of the shared space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.tokenizer import filled
from granary.training.evaluation.pairs import Encoded, ImageTextModel, encode_rows, load_image_text_model
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions, json_option
from granary.training.evaluation.scores import Scores

SCALE = 2.5  # w of the paper: puts most cosines of CLIP into 0 .. 1
PROMPT = "A photo depicts {}"
CHUNK = 64  # pictures whose captions are scored at once
NOTES = ("clipscore: 2.5 * max(cosine, 0), mean over captions; .other: of the same captions with other pictures.",)


class ClipScoreOptions(SplitOptions, frozen=True):
    """Options of CLIPScore."""

    candidates: str | None = Field(None, description="column of the captions that are scored; default: captions")
    results: str | None = Field(
        None,
        description="JSON of captions in the place of a column, [{image_id, caption}] as COCO has it, image_id being "
        "the id of a row, of a render its row_id; the captions of the data are then the references",
    )
    references: str | None = Field(None, description="column of references, for RefCLIPScore")
    prompt: str = Field(PROMPT, description="what captions and references are put into, {}")


def evaluate(measured: Measured, options: ClipScoreOptions) -> Scores:
    """Score the captions of every picture; without a split all rows are taken.

    Returns:
        clipscore with `.other`; refclipscore where there are references; the numbers of captions, with those cut to the
        context, and of pictures, of those without captions, and of unreadable ones.

    Raises:
        UserError: a model that has no vectors, options that exclude each other, results that are no such file.
    """
    _check(options)
    columns = dataclasses.replace(measured.columns, captions=options.candidates or measured.columns.captions)
    needs = ["image", "captions", *([options.references] if options.references else [])]
    dataset = shards.open_dataset(measured.data, needs, measured.split, options.holdout, "CLIPScore", columns)
    model = load_image_text_model(measured.model, measured.device, measured.dtype, "vectors")
    encoded = encode_rows(model, dataset, "captions", (), measured.batch, measured.limit, needs[2:])
    results = read_results(options.results) if options.results else None
    texts = [_texts(row, options.references, results) for row in encoded.rows]
    has = [place for place, (candidates, _) in enumerate(texts) if candidates]
    if not has:
        raise UserError(f"options.results: {options.results} has no image_id that is an id of {measured.data}")
    before = model.truncated
    scores = scored(model, encoded.vectors[has], [texts[place] for place in has], options.prompt)
    cut = model.truncated - before
    return Scores({**scores, "captions.truncated": cut, **_counts(measured, dataset, encoded, len(has))})


PROTOCOL = Protocol(evaluate, ClipScoreOptions, notes=NOTES)


def _check(options: ClipScoreOptions) -> None:
    if "{}" not in options.prompt:
        raise UserError(f"options.prompt: {options.prompt!r} is not right; write {{}} for the caption")
    if options.results and (options.candidates or options.references):
        raise UserError("options.results: it goes without candidates and references; the captions are the references")


def _texts(row: Part, references: str | None, results: Mapping[str, str] | None) -> tuple[list[str], list[str]]:
    """Return candidates and references of a row."""
    captions = filled(row["captions"])
    if results is not None:
        result = results.get(str(row["key"]))
        return [result] if result else [], captions
    others = row[references] if references else ()
    return captions, filled([others] if isinstance(others, str) else others)


def read_results(path: str) -> dict[str, str]:
    """Return the captions of a JSON list of {image_id, caption} by image_id. Raises UserError for another file."""
    tree = json_option(path, "results")
    rows = tree if isinstance(tree, list) else [None]
    captions = {
        str(row["image_id"]): row["caption"]
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("caption"), str) and "image_id" in row
    }
    if len(captions) < len(rows):
        raise UserError(f"options.results: {path} is not right; it must be a list of image_id, each once, and caption")
    return captions


def _counts(measured: Measured, dataset: shards.Dataset, encoded: Encoded, scored: int) -> dict[str, float | None]:
    read = dataset.count if measured.limit is None else min(measured.limit, dataset.count)
    lost = len(encoded.dead)
    return {"pictures": scored, "pictures.without_captions": read - lost - scored, "pictures.unreadable": lost}


def scored(
    model: ImageTextModel, vectors: Tensor, texts: Sequence[tuple[Sequence[str], Sequence[str]]], prompt: str = PROMPT
) -> dict[str, float | None]:
    """Return the scores of captions.

    Args:
        model: scores them.
        vectors: (N, D), or what else the model's `scores` takes, of the pictures.
        texts: for each picture its candidates, and references, which may be none.
        prompt: what texts are put into.
    """
    other = torch.roll(torch.arange(len(vectors)), max(1, len(vectors) // 2))
    own, wrong, best = list[Tensor](), list[Tensor](), list[float]()
    for start in range(0, len(vectors), CHUNK):
        some = texts[start : start + CHUNK]
        at = torch.tensor([n for n, (candidates, _) in enumerate(some) for _ in candidates])
        candidates = _encoded(model, [text for one, _ in some for text in one], prompt)
        references = _encoded(model, [text for _, others in some for text in others], prompt)
        places = torch.arange(len(at))
        for into, pictures in ((own, vectors[start : start + CHUNK]), (wrong, vectors[other[start : start + CHUNK]])):
            into.append(model.scores(pictures, candidates)[at, places].double())
        best += _nearest(candidates, references, some)
    scores = clip_score(torch.cat(own))
    found: dict[str, float | None] = {"clipscore": float(scores.mean())}
    found["clipscore.other"] = float(clip_score(torch.cat(wrong)).mean()) if len(vectors) > 1 else None
    if any(others for _, others in texts):
        referred = ~torch.tensor(best).isnan()
        found["refclipscore"] = float(ref_clip_score(scores, torch.tensor(best).double())[referred].mean())
        found["refclipscore.captions"] = int(referred.sum())
    return found | {"captions": len(scores)}


def _encoded(model: ImageTextModel, texts: Sequence[str], prompt: str) -> Tensor:
    """Return the vectors of texts in the prompt, (T, D); equal texts have equal vectors."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return torch.empty(0, 1)
    vectors, places = (
        model.texts([prompt.replace("{}", text) for text in distinct]),
        {t: n for n, t in enumerate(distinct)},
    )
    return vectors[[places[text] for text in texts]]


def _nearest(
    candidates: Tensor, references: Tensor, texts: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> list[float]:
    """Return for each candidate the cosine of its nearest reference, NaN where the picture has none."""
    nearest, first, start = list[float](), 0, 0
    for own, others in texts:
        some, those = candidates[first : first + len(own)], references[start : start + len(others)]
        first, start = first + len(own), start + len(others)
        if len(those):
            nearest += (F.normalize(some, dim=1) @ F.normalize(those, dim=1).T).amax(dim=1).tolist()
        else:
            nearest += [float("nan")] * len(own)
    return nearest


def clip_score(cosines: Tensor) -> Tensor:
    """Return 2.5 * max(cosine, 0)."""
    return SCALE * cosines.clamp(min=0)


def ref_clip_score(scores: Tensor, nearest: Tensor) -> Tensor:
    """Return the harmonic mean of CLIPScore and the cosine of the nearest reference, 0 where either is none.

    Args:
        scores: (n,) of `clip_score`.
        nearest: (n,) cosines.
    """
    near = nearest.clamp(min=0)
    total = scores + near
    return torch.where(total > 0, 2 * scores * near / total.clamp(min=torch.finfo(total.dtype).tiny), 0)
