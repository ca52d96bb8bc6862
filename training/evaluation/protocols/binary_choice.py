"""Binary choice: of a caption and a hard negative, which one does the model score higher for the picture?

SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610) and whatever has its shape. A tie counts as wrong.
"""

from __future__ import annotations

import gzip
import posixpath
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from PIL import Image
from pydantic import Field

from granary.curation.errors import UserError
from granary.curation.images.decode import decode
from granary.curation.sources import Reader, Source, list_pieces, read_piece, resolve
from granary.curation.store import storage
from granary.curation.store.trees import json_tree
from granary.training.data.pairs import LIMITS, read_entries
from granary.training.evaluation.pairs import PairScorer, load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions
from granary.training.evaluation.scores import Scores

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
KEYS = ("coco_key", "filename", "file_name", "image", "key")  # fields that may name the picture; the first one counts


@dataclass(frozen=True)
class Question:
    """A caption, a text that is wrong, and what kind of change was made."""

    kind: str
    caption: str
    negative: str


@dataclass(frozen=True)
class AskedPicture:
    """A picture, decoded when called for, and the questions about it."""

    image: Callable[[], Image.Image]
    questions: list[Question]


class BinaryChoiceOptions(ScorerOptions, frozen=True):
    """Options of binary choice."""

    images: str | None = Field(
        None, description="of question files: a folder, or tar files; pictures are found by file name"
    )


def evaluate(measured: Measured, options: BinaryChoiceOptions) -> Scores:
    """Ask all questions.

    The data are questions as .json (SugarCrepe's: number -> filename, caption, negative_caption) or .jsonl (an object a
    line with caption, negative_caption, coco_key or filename, and kind), plain or .gz, or a folder of them, the kind
    being the file's name unless given; or a run of `granary pack`, whose first summaries are compared with every
    negative. A limit counts pictures.

    Returns:
        Accuracy for each kind with `.questions`, their `mean`, `accuracy` over all questions, `chance`; counts of
        questions, of those without a picture or with one that cannot be decoded, and of texts cut to the context.
    """
    data, limit = measured.data, measured.limit
    questions = read_questions(data)
    if questions is None:
        pictures = pictures_of_run(data, measured.split)
    elif options.images is None:
        raise UserError(f"images: missing; give the folder or tar with the pictures of {data!r}")
    else:
        pictures = pictures_of_source(questions, options.images)
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)
    scores = choices(model, islice(pictures, limit), measured.batch)
    total = scores["questions"] if questions is None or limit else sum(map(len, questions.values()))
    missing = (total or 0) - (scores["questions"] or 0)
    return Scores({**scores, "questions": total, "questions.without_picture": missing})


PROTOCOL = Protocol(evaluate, BinaryChoiceOptions, batch=32, table=False)


def choices(model: PairScorer, pictures: Iterable[AskedPicture], batch: int = 32) -> dict[str, float | None]:
    """Ask the questions of pictures that come one after another; see `evaluate`."""
    results: dict[str, list[bool]] = defaultdict(list)
    questions = unreadable = 0
    before, pictures = model.truncated, iter(pictures)
    while chunk := list(islice(pictures, batch)):
        pixels = model.prepared([picture.image for picture in chunk])
        for picture, prepared in zip(chunk, pixels, strict=True):
            questions += len(picture.questions)
            unreadable += len(picture.questions) if prepared is None else 0
        answer(model, [(p.questions, x) for p, x in zip(chunk, pixels, strict=True) if x is not None], results)
    counts = {"questions": questions, "questions.unreadable": unreadable}
    return accuracies_by_kind(results) | counts | {"texts.truncated": model.truncated - before}


def answer(
    model: PairScorer, pictures: list[tuple[list[Question], torch.Tensor]], results: dict[str, list[bool]]
) -> None:
    """Add to `results`, for each kind, whether captions win.

    Args:
        model: scores texts.
        pictures: questions and their prepared picture (3, h, w).
        results: kind -> whether the caption won, question by question.
    """
    rows = [(question, at) for at, (questions, _) in enumerate(pictures) for question in questions]
    if not rows:
        return
    distinct = dict.fromkeys(text for question, _ in rows for text in (question.caption, question.negative))
    vectors = dict(zip(distinct, model.texts(list(distinct)), strict=True))
    images = model.images(torch.stack([pixels for _, pixels in pictures]))[[at for _, at in rows]]  # (n, D)
    texts = [torch.stack([vectors[question.caption], vectors[question.negative]]) for question, _ in rows]
    logits = model.own_logits(images, torch.stack(texts))  # (n, 2)
    for (question, _), won in zip(rows, (logits[:, 0] > logits[:, 1]).tolist(), strict=True):
        results[question.kind].append(won)


def accuracies_by_kind(results: Mapping[str, list[bool]]) -> dict[str, float | None]:
    """Return the accuracy of every kind, their mean, and the accuracy over all questions; None without questions."""
    kinds = {kind: sum(won) / len(won) for kind, won in sorted(results.items())}
    counts = {f"{kind}.questions": len(won) for kind, won in sorted(results.items())}
    every = [one for won in results.values() for one in won]
    means = {
        "mean": sum(kinds.values()) / len(kinds) if kinds else None,
        "accuracy": sum(every) / len(every) if every else None,
    }
    return {**kinds, **means, "chance": 0.5, **counts}


def pictures_of_run(data: str, split: str | None) -> Iterator[AskedPicture]:
    """Yield the entries of a packed run that have a summary and negatives."""
    for entry in read_entries(data, split):
        if entry.captions and entry.negatives:
            questions = [Question(n.kind, entry.captions[0], n.text) for n in entry.negatives]
            yield AskedPicture(entry.image, questions)


def pictures_of_source(by_stem: Mapping[str, list[Question]], path: str) -> Iterator[AskedPicture]:
    """Yield the pictures of a folder or tar that have questions, each name once."""
    source = resolve(Source(name="images", path=path))
    waiting = dict(by_stem)
    with Reader(source, LIMITS.max_bytes) as reader:
        for piece in list_pieces(source):
            for candidate in read_piece(source, piece, LIMITS.max_bytes):
                questions = waiting.pop(stem(candidate.uri), None) if candidate.error is None else None
                if questions:
                    data = candidate.data
                    if data is None:
                        data = reader.read(candidate.path, candidate.offset, candidate.size)
                    yield AskedPicture(partial(decoded, data), questions)


def decoded(data: bytes) -> Image.Image:
    """Decode a picture to RGB; raises DecodeError."""
    return decode(data, LIMITS).image


def stem(name: str) -> str:
    """Return a file name without folder, tar and ending: what pictures and questions are matched by."""
    return posixpath.splitext(posixpath.basename(name).rpartition("#")[2])[0]


def read_questions(data: str) -> dict[str, list[Question]] | None:
    """Return the questions of a file or folder by the stem of their picture; None where there are no such files.

    Raises:
        UserError: for a file that is not in one of the forms, naming the line.
    """
    if data.endswith(ENDINGS):
        files = [data]
    else:
        files = [storage.join(data, name) for name in storage.names(data) if name.endswith(ENDINGS)]
        if not files or storage.exists(storage.join(data, "run.json")):
            return None
    questions: dict[str, list[Question]] = defaultdict(list)
    for file in files:
        for number, record in records(file):
            key, question = question_of(record, file, number)
            questions[key].append(question)
    return questions


def records(file: str) -> Iterator[tuple[str, object]]:
    """Yield (place, record) of a .json or .jsonl file, plain or .gz."""
    try:
        data = storage.read_bytes(file)
        text = (gzip.decompress(data) if file.endswith(".gz") else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"data: {file!r} cannot be read ({error}); give .json or .jsonl, plain or .gz") from error
    lines = ".jsonl" in file[-9:]
    try:
        if lines:
            yield from ((f"line {n}", json_tree(line)) for n, line in enumerate(text.splitlines(), 1) if line.strip())
        else:
            tree = json_tree(text)
            if not isinstance(tree, dict | list):
                raise ValueError(f"it holds a {type(tree).__name__}")
            yield from tree.items() if isinstance(tree, dict) else ((f"item {n}", item) for n, item in enumerate(tree))
    except ValueError as error:
        raise UserError(
            f"data: {file!r} is not JSON ({error}); give one JSON object, or one a line (.jsonl)"
        ) from error


def question_of(record: object, file: str, place: str) -> tuple[str, Question]:
    """Return the stem of the picture of a record, and its question. Raises UserError where a field is missing."""
    fields = record if isinstance(record, dict) else {}
    key = next((fields[name] for name in KEYS if isinstance(fields.get(name), str)), None)
    caption, negative = fields.get("caption"), fields.get("negative_caption")
    if not (key and isinstance(caption, str) and isinstance(negative, str)):
        needed = f"caption, negative_caption and one of {', '.join(KEYS)}"
        raise UserError(f"data: {file!r}, {place}: a field is missing; a question has {needed}")
    kind = fields.get("kind") or posixpath.basename(file).split(".")[0]
    return stem(key), Question(str(kind), caption, negative)
