"""What a recipe says of the texts of its pictures."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from granary.curation.options import Options
from granary.curation.values import Sentence
from granary.synth.pug.texts.templates import POLL

QuestionKind = Literal["what", "world", "where", "count", "side", "height", "colour", "texture"]
Sampling = Literal["random", "popular", "adversarial"]
QuadKind = Literal["relation", "colour", "texture"]
VideoKind = Literal["what", "world", "colour", "texture"]


class Captions(Options, frozen=True):
    """The captions of a picture."""

    style: Literal["none", "spar", "templates", "sentences"] = Field(
        "none",
        description="spar: the captions of PUG: SPAR; templates: each of yours; sentences: `count` of those that fit, "
        "drawn for each picture",
    )
    templates: tuple[Sentence, ...] = Field(
        (), description="texts with {column} in them; of sentences also {thing}, {side} and others, with defaults"
    )
    count: int = Field(5, ge=1, description="sentences: most captions of a picture")


class Questions(Options, frozen=True):
    """Questions about a picture, with their answers: the column `questions`."""

    kinds: tuple[QuestionKind, ...] = Field(
        (),
        description="what is asked; height is above or below. A kind that a picture cannot answer is left out of it",
    )
    count: int = Field(1, ge=1, description="most questions of a kind about a picture")
    templates: dict[QuestionKind, tuple[Sentence, ...]] = Field(
        {}, description="by kind your wordings in the place of the shipped ones"
    )


class Polls(Options, frozen=True):
    """Is there an OBJECT in the image? As many objects that are there as are not, as POPE asks: the column `polls`."""

    kinds: tuple[Sampling, ...] = Field(
        (),
        description="how absent objects are chosen: random; popular, the most frequent ones; adversarial, those that "
        "stand most often beside what is there",
    )
    template: Sentence = Field(POLL, description="the question, with {object} or {a_object}")


class Quads(Options, frozen=True):
    """Two pictures and two captions of the same words, as Winoground has them: the config `quads`."""

    kinds: tuple[QuadKind, ...] = Field(
        (), description="what the pictures exchange: the places of two things, their colours, or their textures"
    )
    count: int = Field(400, ge=1, description="most quads, drawn among all that the plan has")
    templates: dict[QuadKind, Sentence] = Field({}, description="by kind your wording in the place of the shipped one")


class Videos(Options, frozen=True):
    """Long runs of still frames with a short needle, and a question about it: the config `videos`."""

    kinds: tuple[VideoKind, ...] = Field(
        (),
        description="what is asked of the needle: what is in a place, in which world something is, its colour or "
        "texture; nothing else in the video has an answer",
    )
    count: int = Field(1000, ge=1, description="most videos, drawn among all that the plan has")
    frames: int = Field(64, ge=2, description="of a video")
    needle: int = Field(2, ge=1, description="frames that show the needle, one after another")
    shots: int = Field(6, ge=1, description="other pictures of a video at most, each shown for a run of frames")
    templates: dict[VideoKind, tuple[Sentence, ...]] = Field(
        {}, description="by kind your wordings in the place of the shipped ones, with {thing}, {world} or both"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.needle + self.shots > self.frames:
            raise ValueError(
                f"frames is {self.frames}; a needle of {self.needle} frames and {self.shots} shots need at least "
                f"{self.needle + self.shots}"
            )
        return self
