"""Questions about videos, answered by a model that reads as many of their tokens as it may.

The data are the config `videos` of a render, or any rows of frames, `images`, with the column `questions`; or files of
videos with questions, as the model was trained on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.frames import COLUMNS, CONFIGS, FrameViews
from granary.training.data.passes import undecoded
from granary.training.evaluation.answers import normalised
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.protocols.vqa import NOTES, of_answers
from granary.training.evaluation.questions import (
    Answer,
    Question,
    QuestionOptions,
    answered,
    candidates_of,
    mean,
    questions_of,
)
from granary.training.evaluation.scores import DeadLetter, Scores, dead_letter
from granary.training.evaluation.video_generator import VideoGenerator, load_video_generator
from granary.training.models.compression import costs_of


def evaluate(measured: Measured, options: QuestionOptions) -> Scores:
    """Ask all questions; without a split all rows are taken. A limit counts videos.

    Returns:
        accuracy with that of each kind, `.prior` and `.chance`; the number of questions, and of different answers that
        were given; tokens of a video in the mean, with the share of all that its frames have; frames without any token
        left that budget or likeness dropped; the number of videos, of those without questions and of unreadable ones.
    """
    generator = load_video_generator(measured.model, measured.device, measured.dtype)
    dataset = opened(measured, options, generator)
    candidates, answers, whole = candidates_of(dataset, options), list[Answer](), list[int]()
    reading = _Reading(dataset, options, generator)
    for frames, questions in reading.videos(measured.limit):
        pictures = frames[None].expand(len(questions), *frames.shape)
        answers += answered(generator, pictures, questions, options, candidates)
        whole += [len(frames) * _cost(generator)] * len(questions)
    if not answers:
        raise UserError(f"data: {measured.data} has nothing to measure on: no video with a question can be read")
    read = mean(generator.tokens)
    return Scores(
        {
            **of_answers(answers),
            "accuracy.chance": chance([answer.question for answer in answers]),
            "tokens": read,
            "tokens.share": read / mean(whole),
            "tokens.lost_frames": generator.lost,
            "videos": reading.read - reading.without - len(reading.dead),
            "videos.without_questions": reading.without,
            "videos.unreadable": len(reading.dead),
        },
        settings={"dead": reading.dead},
    )


PROTOCOL = Protocol(
    evaluate,
    QuestionOptions,
    takes=("split", "limit"),
    notes=(
        *NOTES,
        "accuracy.chance: of an answer drawn among those to questions of the kind in these data, each alike.",
    ),
)


def opened(measured: Measured, options: QuestionOptions, generator: VideoGenerator) -> shards.Dataset:
    """Open the videos as the model was trained on them. Raises UserError."""
    source = generator.model.options.source
    needs, why = (*COLUMNS[source], options.column), "video-vqa"
    where = (measured.split, options.holdout, why, measured.columns)
    return shards.open_dataset(measured.data, needs, *where, config=CONFIGS[source])


def chance(questions: list[Question]) -> float:
    """Return how right it is to draw an answer of the kind, each alike."""
    kinds = defaultdict[str, set[str]](set)
    for question in questions:
        kinds[question.kind].update(map(normalised, question.people))
    return mean(len(set(map(normalised, question.people))) / len(kinds[question.kind]) for question in questions)


def _cost(generator: VideoGenerator) -> int:
    """Return the tokens of a frame of which none is dropped."""
    model = generator.model
    side = model.options.high
    return costs_of(side, side, model.options.limits, model.newline is not None).high


class _Reading:
    """The videos of a dataset that are asked about.

    Attributes:
        read, without: rows so far, and those without questions.
        dead: those that cannot be decoded.
    """

    def __init__(self, dataset: shards.Dataset, options: QuestionOptions, generator: VideoGenerator) -> None:
        model = generator.model.options
        self.dataset, self.options, self.source = dataset, options, model.source
        self.views, self.most = FrameViews(model.source, model.rate), model.frames
        self.side = generator.model.config.img_size
        self.read = self.without = 0
        self.dead: list[DeadLetter] = []

    def videos(self, limit: int | None) -> Iterator[tuple[Tensor, list[Question]]]:
        """Yield frames (T, S, S, 3) uint8, and what is asked about them."""
        columns = ("id", "row_id", "source", *COLUMNS[self.source], self.options.column)
        for row in undecoded(self.dataset, columns, limit):
            self.read += 1
            questions = questions_of(row, self.options)
            frames = self._frames(row) if questions else None
            self.without += not questions
            if frames is not None:
                yield frames, questions

    def _frames(self, row: Part) -> Tensor | None:
        """Return the frames of a row; None where they cannot be decoded."""
        try:
            return torch.from_numpy(self.views.read(row, self.most, self.side, DecodeLimits()))
        except DecodeError as error:
            self.dead.append(dead_letter(row["uri"], error.kind, str(error)))
            return None
