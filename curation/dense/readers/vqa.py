"""VQAv2: the file of questions, and the file of annotations that answers them.

Goyal et al. 2017, arXiv 1612.00837; the schema is that of https://visualqa.org/download.html. Questions:
{"data_subtype": "val2014", "questions": [{"image_id", "question", "question_id"}]}. Annotations: {"annotations":
[{"question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers": [{"answer",
"answer_confidence", "answer_id"}]}]}, ten answers each. Pictures are COCO's, named COCO_val2014_000000262148.jpg or
000000262148.jpg. The files are read whole, so memory grows with them while the records are listed. The questions of a
test set have no annotations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import gathered
from granary.curation.dense.readers.gathered import Gathering
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import Annotation, Problem
from granary.curation.errors import UserError
from granary.curation.sources import Source
from granary.curation.store.language import QuestionRow

DIGITS = 12
QUESTION = frozenset({"image_id", "question", "question_id"})
ANSWER = frozenset({"question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers"})


def records(source: Source, max_bytes: int, answers: str = "") -> Iterator[Record]:
    """Yield the pictures in the order of their first questions, each with its questions and their answers as JSON.

    What belongs to no picture follows: questions without an id or a picture, and annotations of no question or of one
    that has another already.

    Args:
        source: the file of questions.
        max_bytes: not used: the files are read whole.
        answers: path of the file of annotations; "" for none.

    Raises:
        UserError: a file is not VQAv2's.
    """
    whole = _object(gathered.load(source.path), source.path)
    subset, gathering = str(whole.get("data_subtype") or ""), Gathering()
    answered = _annotations(answers, gathering) if answers else {}
    seen: Counter[str] = Counter()
    for place, question in enumerate(_listed(whole, "questions", source.path)):
        number, names = gathered.identity(question.get("question_id")), _names(question.get("image_id"), subset)
        seen[number] += 1
        if not number or not names:
            gathering.lose(f"questions/{place}", "NoImageName", "the question has no question_id or no image_id")
        elif seen[number] > 1:
            gathering.lose(f"questions/{place}", "DuplicateKey", f"question_id {number} stands twice; the first counts")
        else:
            gathering.add(names, {"question": question, **({"annotation": answered.get(number)} if answers else {})})
    for number in answered.keys() - seen.keys():
        gathering.lose(f"annotations/{number}", "NoQuestion", f"no question has the question_id {number}")
    gathering.lost.sort()
    yield from gathering.records(gathered.stem_of(source))


def _object(whole: object, path: str) -> JsonObject:
    if not isinstance(whole, Mapping):
        raise UserError(f"annotations: {path} is no file of VQAv2: it holds no JSON object")
    return whole


def _listed(whole: JsonObject, name: str, path: str) -> list[JsonObject]:
    otherwise = (
        f"annotations: {path} is no file of VQAv2: {name!r} is no list in it; give the questions as --annotations and "
        "the annotations as --answers"
    )
    return gathered.listed(whole, name, otherwise)


def _annotations(path: str, gathering: Gathering) -> dict[str, JsonObject]:
    """Return the annotations by the id of their question; of two the first counts, the other is lost."""
    answered: dict[str, JsonObject] = {}
    for place, entry in enumerate(_listed(_object(gathered.load(path), path), "annotations", path)):
        number = gathered.identity(entry.get("question_id"))
        if not number:
            gathering.lose(f"annotations[{place}]", "NoQuestion", "the annotation has no question_id")
        elif number in answered:
            message = f"question_id {number} is answered twice; the first counts"
            gathering.lose(f"annotations[{place}]", "DuplicateKey", message)
        else:
            answered[number] = entry
    return answered


def _names(number: object, subset: str) -> list[str]:
    """Return the names that the picture of an image_id may have, of COCO 2014 first; none without an id."""
    name = gathered.identity(number)
    if not name:
        return []
    digits = name.zfill(DIGITS) if name.isdecimal() else name
    split = subset.replace("test-dev", "test")
    files = [f"{digits}.jpg", f"{name}.jpg"]
    if split:
        files = [f"COCO_{split}_{digits}.jpg", f"{split}/COCO_{split}_{digits}.jpg", *files]
    return list(dict.fromkeys(files))


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    (image, *also), entries, problems = gathered.opened(data)
    asked = [fields.json_object(entry["question"]) for entry in entries]
    answers = [found for entry in entries if isinstance(found := entry.get("annotation"), dict)]
    problems += gathered.unknown(asked, QUESTION, "questions") + gathered.unknown(answers, ANSWER, "annotations")
    questions = [question for entry in entries if (question := _question(entry, problems))]
    return Annotation(file=name, image=image, also=tuple(also), questions=questions, problems=problems)


def _question(entry: JsonObject, problems: list[Problem]) -> QuestionRow | None:
    """Return a question with its annotation; None where it has no text, which is noted."""
    asked, found = fields.json_object(entry["question"]), entry.get("annotation", {})
    part = f"questions/{gathered.identity(asked['question_id'])}"
    text = fields.text(asked, "question", problems, part)
    if not text:
        problems.append(Problem(part, "EmptyText", "nothing is asked"))
        return None
    if found is None:
        problems.append(Problem(part, "NoAnswer", "no annotation answers it"))
    answer = found if isinstance(found, dict) else {}
    return QuestionRow(
        id=gathered.identity(asked["question_id"]),
        kind=fields.text(answer, "answer_type", problems, part),
        question=text,
        answer=fields.text(answer, "multiple_choice_answer", problems, part),
        answers=_answers(answer, part, problems),
    )


def _answers(annotation: JsonObject, part: str, problems: list[Problem]) -> list[str]:
    """Return the texts of the answers; what is none is noted."""
    listed = annotation.get("answers") or []
    entries = listed if isinstance(listed, list) else [None]
    texts = [entry.get("answer") if isinstance(entry, dict) else None for entry in entries]
    return fields.texts(texts, f"{part}/answers", problems)
