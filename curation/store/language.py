"""The columns that tell what is asked of pictures, whoever wrote them: questions, polls, conversations, quads.

`questions` follows VQAv2 (Goyal et al., arXiv 1612.00837), `polls` POPE (Li et al., arXiv 2305.10355), `messages` the
turns of a chat as `transformers` takes them, and the config `quads` has the published columns of Winoground (Thrush et
al., arXiv 2204.03162).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType

MEANINGS = {
    "questions": "questions about the picture: id, kind, question, answer, and answers, all that people gave",
    "polls": "whether an object is in the picture: kind (random, popular, adversarial: how the absent ones were "
    "chosen), object, question, answer (yes or no)",
    "images": "the frames of a video, one after another",
    "needle": "numbers of the frames that the questions are about, the first is 0",
    "messages": "conversations about the picture, the turns of all one after another: conversation, role, content",
}


class QuestionRow(TypedDict):
    """A question about a picture.

    Attributes:
        id: of the question, as its source has it.
        kind: what sort of question it is: of VQAv2 the type of its answer, of GQA its structure.
        question: text.
        answer: the one answer that counts as right where one must be chosen; "" where it is not published.
        answers: every answer that people gave, the same one as often as it was given.
    """

    id: str
    kind: str
    question: str
    answer: str
    answers: list[str]


class PollRow(TypedDict):
    """A question whether an object is in a picture.

    Attributes:
        kind: how the absent objects of its list were chosen: random, popular or adversarial.
        object: the words for it; "" where the question does not tell.
        question: text.
        answer: yes or no.
    """

    kind: str
    object: str
    question: str
    answer: Literal["yes", "no"]


class MessageRow(TypedDict):
    """A turn of a conversation about a picture.

    Attributes:
        conversation: its id.
        role: user, assistant or system.
        content: text; <image> stands where the picture is shown.
    """

    conversation: str
    role: Literal["user", "assistant", "system"]
    content: str


class PictureFile(TypedDict):
    """The bytes of a picture's file, and its name."""

    bytes: bytes
    path: str


class QuadRow(TypedDict):
    """Two pictures and two captions of the same words: caption_0 is of image_0 alone, caption_1 of image_1 alone.

    Attributes:
        tag, secondary_tag, num_main_preds, collapsed_tag: what was changed, as Winoground has it.
        split: train, or what the data says.
    """

    id: str
    image_0: PictureFile
    image_1: PictureFile
    caption_0: str
    caption_1: str
    tag: str
    secondary_tag: str
    num_main_preds: int
    collapsed_tag: str
    split: str


class VideoRow(TypedDict):
    """Frames, and questions that a few of them answer.

    Attributes:
        images: the frames, one after another.
        questions: about the needle.
        needle: numbers of its frames.
        split: train, or where the rows of all its pictures are held out to.
    """

    id: str
    images: list[PictureFile]
    questions: list[QuestionRow]
    needle: list[int]
    split: str


def question_feature() -> FeatureType:
    """Return the `datasets` feature of the column questions, a list of `QuestionRow`."""
    from datasets import List, Value

    string = Value("string")
    return List({"id": string, "kind": string, "question": string, "answer": string, "answers": List(string)})


def poll_feature() -> FeatureType:
    """Return the `datasets` feature of the column polls, a list of `PollRow`."""
    from datasets import List, Value

    return List({name: Value("string") for name in ("kind", "object", "question", "answer")})


def message_feature() -> FeatureType:
    """Return the `datasets` feature of the column messages, a list of `MessageRow`."""
    from datasets import List, Value

    return List({name: Value("string") for name in ("conversation", "role", "content")})


def quad_features() -> Features:
    """Return the `datasets.Features` of the config quads, see `QuadRow`."""
    from datasets import Features, Image, Value

    string = Value("string")
    return Features(
        {
            "id": string,
            "image_0": Image(),
            "image_1": Image(),
            "caption_0": string,
            "caption_1": string,
            "tag": string,
            "secondary_tag": string,
            "num_main_preds": Value("int32"),
            "collapsed_tag": string,
            "split": string,
        }
    )


def frames_features() -> Features:
    """Return the `datasets.Features` of the config videos of a render, see `VideoRow`."""
    from datasets import Features, Image, List, Value

    return Features(
        {
            "id": Value("string"),
            "images": List(Image()),
            "questions": question_feature(),
            "needle": List(Value("int32")),
            "split": Value("string"),
        }
    )
