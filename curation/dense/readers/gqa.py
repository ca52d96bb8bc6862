"""GQA: files of questions, {question id: {question, answer, imageId, ...}}, with a short answer to each.

Hudson and Manning 2019, arXiv 1902.09506; the schema is that of
https://cs.stanford.edu/people/dorarad/gqa/download.html. A question has `imageId`, whose picture is IMAGEID.jpg,
`question`, `answer`, `fullAnswer`, `isBalanced`, `groups`, `entailed`, `equivalent`, `types` (structural, semantic,
detailed), `annotations`, `semantic` and `semanticStr`; those of a test set have no answer. The structural type
(verify, query, choose, logical, compare) is kept as the kind of a question. One file or a folder of them
(train_all_questions/); each is read whole, so memory grows with the questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import gathered
from granary.curation.dense.readers.gathered import Gathering
from granary.curation.dense.readers.record import Record
from granary.curation.dense.texts import cleaned
from granary.curation.dense.tree import Annotation, Problem
from granary.curation.errors import UserError
from granary.curation.sources import Source
from granary.curation.store.language import QuestionRow

KEPT = ("question", "answer", "types")
KNOWN = frozenset(
    {
        *(*KEPT, "imageId", "fullAnswer", "isBalanced", "groups", "entailed", "equivalent", "annotations"),
        *("semantic", "semanticStr"),
    }
)


def records(source: Source, max_bytes: int) -> Iterator[Record]:
    """Yield the pictures in the order of their first questions, each with its questions as JSON, then what has none.

    Args:
        source: a file or a folder of files.
        max_bytes: not used: the files are read whole.

    Raises:
        UserError: a file is not GQA's.
    """
    gathering, seen = Gathering(), set[str]()
    for path, whole in gathered.json_files(source):
        if not isinstance(whole, Mapping):
            raise UserError(f"annotations: {path} is no file of GQA: it holds no object of questions")
        for number, question in whole.items():
            _add(number, question, gathering, seen)
    yield from gathering.records(gathered.stem_of(source))


def _add(number: str, question: object, gathering: Gathering, seen: set[str]) -> None:
    """Add a question, without what is not kept of it."""
    asked = question if isinstance(question, dict) else {}
    image = gathered.identity(asked.get("imageId"))
    if not image:
        gathering.lose(f"questions/{number}", "NoImageName", "the question has no imageId")
    elif number in seen:
        gathering.lose(f"questions/{number}", "DuplicateKey", "the question stands in two files; the first counts")
    else:
        seen.add(number)
        slim = {key: value for key, value in asked.items() if key in KEPT or key not in KNOWN}
        gathering.add([f"{image}.jpg", image], {"id": number, "question": slim})


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    (image, *also), entries, problems = gathered.opened(data)
    asked = [fields.json_object(entry["question"]) for entry in entries]
    problems += gathered.unknown(asked, KNOWN, "questions")
    questions = [question for entry in entries if (question := _question(entry, problems))]
    return Annotation(file=name, image=image, also=tuple(also), questions=questions, problems=problems)


def _question(entry: JsonObject, problems: list[Problem]) -> QuestionRow | None:
    """Return a question; None where it has no text, which is noted."""
    number, asked = cleaned(str(entry["id"])), fields.json_object(entry["question"])
    part = f"questions/{number}"
    text = fields.text(asked, "question", problems, part)
    if not text:
        problems.append(Problem(part, "EmptyText", "nothing is asked"))
        return None
    types, answer = asked.get("types"), fields.text(asked, "answer", problems, part)
    kind = fields.text(types, "structural", problems, part) if isinstance(types, dict) else ""
    return QuestionRow(id=number, kind=kind, question=text, answer=answer, answers=[answer] if answer else [])
