"""What is asked of a picture, by what is known of it; the wording is drawn by hash, the same whatever else is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from granary.curation.instructions.recipe import Attribute, Task
from granary.curation.instructions.schema import Form, InstructionRow, TargetRow, ThingRow
from granary.curation.store.sampling import hashed

WORDINGS: Mapping[str, Sequence[str]] = {
    "box": (
        "Where is the {name}? Answer with a box.",
        "Give the box of the {name}.",
        "Find the {name} and draw a box around it.",
    ),
    "mask": ("Where is the {name}? Answer with a mask.", "Segment the {name}.", "Find the {name} and give its mask."),
    "count": ("How many things of the kind {name} are in the picture? Answer with a number.",),
    "caption": ("Describe the picture.", "What does the picture show? Answer with a sentence."),
}
OF_GROUPS: Mapping[Attribute, str] = {
    "name": "Which pictures show the {value}? Give its mask in each of them.",
    "texture": "Which pictures show something of the texture {value}? Give its mask in each of them.",
    "position": "Which pictures show something on the {value}? Give its mask in each of them.",
    "size": "Which pictures show something {value}? Give its mask in each of them.",
}


def instructions_of(
    row: Mapping[str, Any],
    things: Sequence[ThingRow],
    size: tuple[int, int],
    names: Sequence[str],
    tasks: Sequence[Task],
    absent: int,
    draw: str,
) -> list[InstructionRow]:
    """Return what is asked of a picture: of every name that it shows, of some that it does not, and what it came with.

    Boxes and masks of a name are those of all things that are called so. Masks are asked for where all of these have
    one.

    Args:
        row: with captions, questions and polls, where it has them.
        things: that the picture shows.
        size: its width and height.
        names: of the things of all pictures.
        tasks: what is asked.
        absent: names that it does not show, each asked for by all tasks.
        draw: names the draw, and holds seed and picture.
    """
    shown = Counter(thing["name"] for thing in things)
    missing = sorted((n for n in names if n not in shown), key=lambda n: (hashed(f"{draw}/absent/{n}"), n))[:absent]
    made = list[InstructionRow]()
    for name in [*sorted(shown), *missing] if things else ():
        targets = [target_of(thing, 0, size) for thing in things if thing["name"] == name]
        for task in ("box", "mask", "count"):
            if task in tasks and not (task == "mask" and any(target["counts"] is None for target in targets)):
                question = worded(WORDINGS[task], f"{draw}/{task}/{name}").format(name=name)
                made.append(asked(task, question, str(len(targets)) if task == "count" else "", targets))
    return [*made, *_told(row, tasks, draw)]


def _told(row: Mapping[str, Any], tasks: Sequence[Task], draw: str) -> Iterator[InstructionRow]:
    """Yield the questions, polls and captions of a row that are not blank."""
    if "question" in tasks:
        for column in ("questions", "polls"):
            for told in row.get(column) or ():
                question, answer = (str(told.get(key) or "").strip() for key in ("question", "answer"))
                if question and answer:
                    yield asked("question", question, answer)
    if "caption" in tasks:
        for caption in dict.fromkeys(text.strip() for text in row.get("captions") or () if text and text.strip()):
            yield asked("caption", worded(WORDINGS["caption"], f"{draw}/caption/{caption}"), caption)


def asked(task: str, question: str, answer: str = "", targets: Sequence[TargetRow] = ()) -> InstructionRow:
    """Return an instruction; only answers with boxes or masks have targets."""
    forms: Mapping[str, Form] = {"box": "box", "mask": "mask", "group": "group"}
    form = forms.get(task, "text")
    return InstructionRow(
        task=task, form=form, question=question, answer=answer, targets=[] if form == "text" else list(targets)
    )


def target_of(thing: ThingRow, picture: int, size: tuple[int, int]) -> TargetRow:
    """Return a thing as a target, of a picture of some width and height."""
    return TargetRow(picture=picture, box=thing["box"], size=[size[1], size[0]], counts=thing["counts"])


def worded(wordings: Sequence[str], draw: str) -> str:
    """Draw a wording by hash."""
    return wordings[hashed(draw) % len(wordings)]
