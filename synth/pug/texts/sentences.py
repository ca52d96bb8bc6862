"""Captions and questions of a picture: templates that fit its facts, drawn by a hash of seed and row."""

from __future__ import annotations

from collections.abc import Mapping

from granary.curation.store.language import QuestionRow
from granary.synth.pug.plan.factors import Value
from granary.synth.pug.texts.facts import PictureFacts, answer_of, views_of
from granary.synth.pug.texts.options import Captions, QuestionKind, Questions
from granary.synth.pug.texts.templates import (
    ANSWERS,
    CAPTIONS,
    OF_ONE,
    POINTERS,
    QUESTIONS,
    fits,
    in_turn,
    names_in,
    plain,
)

Row = Mapping[str, Value]


def captions_of(facts: PictureFacts, row: Row, options: Captions, draw: str) -> list[str]:
    """Return at most `options.count` different captions that are true of a picture.

    Args:
        facts: of the picture.
        row: its factor values, which templates may name too.
        options: templates, and how many.
        draw: seed of the run and id of the row, with a slash between; they decide the choice.
    """
    templates = options.templates or CAPTIONS
    known = [{**row, **view} for view in views_of(facts)]
    texts = (template.format_map(fields) for template in templates for fields in known if fits(template, fields))
    return in_turn(texts, f"{draw}/caption")[: options.count]


def questions_of(facts: PictureFacts, row: Row, options: Questions, draw: str) -> list[QuestionRow]:
    """Return the questions about a picture, of each kind at most `options.count`, and their answers.

    Args:
        facts: of the picture.
        row: its factor values, which templates may name too.
        options: kinds, templates, and how many.
        draw: seed of the run and id of the row, with a slash between; they decide the choice.
    """
    asked, row_id = [], draw.partition("/")[2]
    for kind in options.kinds:
        answers = _answered(facts, row, options, kind)
        for place, question in enumerate(in_turn(answers, f"{draw}/{kind}")[: options.count]):
            answer = answers[question]
            name = f"{row_id}-{kind}-{place}"
            asked.append(QuestionRow(id=name, kind=kind, question=question, answer=answer, answers=[answer]))
    return asked


def _answered(facts: PictureFacts, row: Row, options: Questions, kind: QuestionKind) -> dict[str, str]:
    """Return the questions of a kind that have one answer, and the answer."""
    answers: dict[str, set[str]] = {}
    for view in views_of(facts):
        known = {**row, **view}
        for template in options.templates.get(kind) or QUESTIONS[kind]:
            if fits(template, known) and _points(template, facts, kind):
                answer = answer_of(facts, view, ANSWERS[kind])
                answers.setdefault(template.format_map(known), set()).add(answer)
    return {question: min(given) for question, given in answers.items() if len(given) == 1 and given != {""}}


def _points(template: str, facts: PictureFacts, kind: QuestionKind) -> bool:
    """Say whether a question tells which of the things it is about, where that matters."""
    if kind not in OF_ONE or len(facts.things) < 2:
        return True
    return not POINTERS.isdisjoint(map(plain, names_in(template)))
