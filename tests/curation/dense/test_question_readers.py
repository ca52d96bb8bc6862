"""Readers of VQAv2, GQA, POPE, LLaVA and Winoground: their published forms, and what comes broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from granary.curation.dense.readers import gqa, llava, pope, vqa, winoground
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import Annotation, InvalidAnnotation
from granary.curation.errors import UserError
from granary.curation.sources import Source

LIMIT = 1 << 20
INFO = {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017}


def source(path: Path) -> Source:
    return Source(name="annotations", path=str(path) + ("/" if path.is_dir() else ""), kind="folder")


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(reader: Any, records: list[Record]) -> dict[str, Annotation]:
    return {record.name: reader.parse(record.text, record.name) for record in records if record.text}


def lost(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.name.partition(":")[2], record.error[0]) for record in records if record.error]


def errors(annotation: Annotation) -> list[tuple[str, str]]:
    return [(problem.part, problem.error) for problem in annotation.problems]


# -- VQAv2 -----------------------------------------------------------------------------------------------------------


def questions_of_vqa(*questions: Any, subset: str = "val2014") -> dict[str, Any]:
    return {
        "info": INFO,
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "Attribution 4.0"},
        "data_subtype": subset,
        "questions": list(questions),
    }


def answered(question: int, *answers: Any, **changes: Any) -> dict[str, Any]:
    return {
        "question_type": "what is this",
        "multiple_choice_answer": "net",
        "answers": [
            {"answer": answer, "answer_confidence": "maybe", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
        "image_id": 458752,
        "answer_type": "other",
        "question_id": question,
        **changes,
    }


def test_vqa_joins_questions_and_annotations_by_picture(tmp_path: Path) -> None:
    asked = [
        {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 458752, "question": "What position is this man playing?", "question_id": 458752001},
    ]
    answers = ["net"] * 9 + ["netting"]
    annotations = [answered(458752000, *answers), answered(262148000, "down", multiple_choice_answer="down")]
    questions = written(tmp_path / "questions.json", questions_of_vqa(*asked))
    path = written(tmp_path / "annotations.json", {"info": INFO, "annotations": annotations})
    records = list(vqa.records(source(questions), LIMIT, str(path)))
    found = read(vqa, records)
    assert list(found) == [
        "questions.json:COCO_val2014_000000458752.jpg",
        "questions.json:COCO_val2014_000000262148.jpg",
    ]
    first, second = found.values()
    assert first.image == "COCO_val2014_000000458752.jpg"
    assert {"000000458752.jpg", "val2014/COCO_val2014_000000458752.jpg"} < set(first.also)
    assert first.questions[0] == {
        "id": "458752000",
        "kind": "other",
        "question": "What is this photo taken looking through?",
        "answer": "net",
        "answers": answers,
    }
    assert [question["id"] for question in first.questions] == ["458752000", "458752001"]
    assert errors(first) == [("questions/458752001", "NoAnswer")]
    assert second.questions[0]["answers"] == ["down"]
    assert not second.problems


def test_vqa_of_a_test_set_has_no_answers_and_the_pictures_of_the_whole_test_set(tmp_path: Path) -> None:
    asked = {"image_id": 1, "question": "Is it?", "question_id": 1000}
    path = written(tmp_path / "q.json", questions_of_vqa(asked, subset="test-dev2015"))
    (annotation,) = read(vqa, list(vqa.records(source(path), LIMIT))).values()
    assert annotation.image == "COCO_test2015_000000000001.jpg"
    assert annotation.questions[0]["answers"] == []
    assert not annotation.problems


def test_vqa_loses_the_smallest_part(tmp_path: Path) -> None:
    asked = [
        {"image_id": 1, "question": "Kept?", "question_id": 10, "colour": 3},
        {"image_id": 1, "question": "", "question_id": 11},
        {"image_id": 1, "question": 7, "question_id": 12},
        {"image_id": 1, "question": "Twice?", "question_id": 10},
        {"question": "Of what?", "question_id": 13},
        {"image_id": 1, "question": "Which?"},
        "no object",
    ]
    bad = [
        answered(10, "yes", None, 3, hint="x"),
        answered(11, "yes"),
        answered(12, "yes"),
        answered(99, "yes"),
        {"question_id": 13, "answers": "yes"},
        answered(10, "no"),
        {"answers": []},
    ]
    path = written(tmp_path / "q.json", questions_of_vqa(*asked))
    answers = written(tmp_path / "a.json", {"annotations": bad})
    records = list(vqa.records(source(path), LIMIT, str(answers)))
    (annotation,) = read(vqa, records).values()
    assert [(question["question"], question["answers"]) for question in annotation.questions] == [("Kept?", ["yes"])]
    assert ("colour", "UnknownKey") in errors(annotation)
    assert ("hint", "UnknownKey") in errors(annotation)
    assert "of 1 questions is not read" in next(p.message for p in annotation.problems if p.part == "colour")
    assert ("questions/11", "EmptyText") in errors(annotation)
    assert ("questions/12", "InvalidText") in errors(annotation)
    assert ("questions/10/answers/1", "InvalidText") in errors(annotation)
    assert lost(records) == [
        ("annotations/99", "NoQuestion"),
        ("annotations[5]", "DuplicateKey"),
        ("annotations[6]", "NoQuestion"),
        ("questions/3", "DuplicateKey"),
        ("questions/4", "NoImageName"),
        ("questions/5", "NoImageName"),
        ("questions/6", "NoImageName"),
    ]


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"annotations": []}', '{"questions": 3}'])
def test_what_is_no_file_of_vqa_stops_the_run(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"annotations: .*q\.json"):
        list(vqa.records(source(written(tmp_path / "q.json", content)), LIMIT))


# -- GQA -------------------------------------------------------------------------------------------------------------

GQA = {
    "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
    "entailed": ["02930160"],
    "equivalent": ["02930152"],
    "question": "Is the sky dark?",
    "imageId": "2354786",
    "isBalanced": True,
    "groups": {"global": None, "local": "06-sky_dark"},
    "answer": "yes",
    "semanticStr": "select: sky (2486325)->verify color: dark [0]",
    "annotations": {"answer": {}, "question": {"2": "2486325"}, "fullAnswer": {"2": "2486325"}},
    "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
    "fullAnswer": "Yes, the sky is dark.",
}


def test_gqa_gathers_the_questions_of_a_folder_by_picture(tmp_path: Path) -> None:
    query = {**GQA, "question": "What is it?", "answer": "cloud", "types": {"structural": "query"}}
    written(tmp_path / "all" / "train_0.json", {"02930152": GQA, "07": {**GQA, "imageId": "n1", "answer": None}})
    written(tmp_path / "all" / "train_1.json", {"08": query, "02930152": GQA, "09": {"question": "Of what?"}})
    records = list(gqa.records(source(tmp_path / "all"), LIMIT))
    first, second = read(gqa, records).values()
    assert (first.image, first.also, second.image) == ("2354786.jpg", ("2354786",), "n1.jpg")
    assert list(first.questions) == [
        {"id": "02930152", "kind": "verify", "question": "Is the sky dark?", "answer": "yes", "answers": ["yes"]},
        {"id": "08", "kind": "query", "question": "What is it?", "answer": "cloud", "answers": ["cloud"]},
    ]
    assert second.questions[0]["answers"] == []
    assert not first.problems
    assert lost(records) == [("questions/02930152", "DuplicateKey"), ("questions/09", "NoImageName")]


def test_gqa_notes_what_it_does_not_know(tmp_path: Path) -> None:
    path = written(tmp_path / "q.json", {"1": {**GQA, "mood": 3}, "2": {**GQA, "mood": 4, "types": 5, "question": []}})
    (annotation,) = read(gqa, list(gqa.records(source(path), LIMIT))).values()
    assert len(annotation.questions) == 1
    (unknown,) = (problem for problem in annotation.problems if problem.error == "UnknownKey")
    assert (unknown.part, "of 2 questions" in unknown.message) == ("mood", True)
    assert ("questions/2", "InvalidText") in errors(annotation)
    with pytest.raises(UserError, match="holds no object of questions"):
        list(gqa.records(source(written(tmp_path / "list.json", [GQA])), LIMIT))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.json file"):
        list(gqa.records(source(tmp_path / "empty"), LIMIT))


# -- POPE ------------------------------------------------------------------------------------------------------------


def line_of_pope(number: int, name: str, text: str, label: str, **more: Any) -> str:
    return json.dumps({"question_id": number, "image": name, "text": text, "label": label, **more})


def test_pope_reads_lines_in_files_called_json_and_tells_kinds_by_their_names(tmp_path: Path) -> None:
    name = "COCO_val2014_000000548882.jpg"
    first = [
        line_of_pope(0, name, "Is there a dining table in the image?", "yes", image_id=548882),
        line_of_pope(1, name, "Is there an orange in the image?", "no", image_id=548882),
        line_of_pope(2, "b.jpg", "Do you see snow?", "No"),
    ]
    written(tmp_path / "coco_pope_random.json", "\n".join(first) + "\n")
    second = line_of_pope(1, name, "Is there a person in the image?", "no")
    written(tmp_path / "coco_pope_adversarial.json", second)
    found = read(pope, list(pope.records(source(tmp_path), LIMIT)))
    picture, other = found[f"{tmp_path.name}:{name}"], found[f"{tmp_path.name}:b.jpg"]
    assert [(poll["kind"], poll["object"], poll["answer"]) for poll in picture.polls] == [
        ("adversarial", "person", "no"),
        ("random", "dining table", "yes"),
        ("random", "orange", "no"),
    ]
    assert [(poll["object"], poll["question"], poll["answer"]) for poll in other.polls] == [
        ("", "Do you see snow?", "no")
    ]
    assert not picture.problems


def test_pope_loses_bad_lines_alone(tmp_path: Path) -> None:
    lines = [
        line_of_pope(0, "a.jpg", "Is there a cat in the image?", "yes", note=1),
        line_of_pope(1, "a.jpg", "Is there a dog in the image?", "maybe"),
        line_of_pope(2, "a.jpg", "", "yes"),
        "{",
        json.dumps({"text": "Is there a cat in the image?", "label": "yes"}),
        json.dumps({"image": "a\0.jpg", "text": "x", "label": "yes"}),
    ]
    path = written(tmp_path / "p.json", "\n".join(lines))
    records = list(pope.records(source(path), LIMIT))
    (annotation,) = read(pope, records).values()
    assert len(annotation.polls) == 1
    assert errors(annotation) == [("note", "UnknownKey"), ("p.json:2", "InvalidPoll"), ("p.json:3", "InvalidPoll")]
    kinds = [("p.json:4", "InvalidJson"), ("p.json:5", "NoImageName"), ("p.json:6", "NoImageName")]
    assert lost(records) == kinds


# -- LLaVA -----------------------------------------------------------------------------------------------------------


def llava_of(name: str, *values: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "000000033471", "image": name, "conversations": turns, **changes}


def test_llava_keeps_the_turns_and_joins_conversations_about_a_picture(tmp_path: Path) -> None:
    name = "coco/train2017/000000033471.jpg"
    talk = ("<image>\nWhat are the colors of the bus?", "White and red.", "And the wheels?", "Black.")
    mixture = [llava_of(name, *talk), llava_of(name, "Describe it.\n<image>", "A bus.", id=7)]
    path = written(tmp_path / "mix.json", mixture)
    (annotation,) = read(llava, list(llava.records(source(path), LIMIT))).values()
    assert annotation.image == name
    assert [(m["conversation"], m["role"]) for m in annotation.messages] == [
        *(("000000033471", role) for role in ("user", "assistant") * 2),
        *(("7", role) for role in ("user", "assistant")),
    ]
    assert tuple(message["content"] for message in annotation.messages[:4]) == talk
    again = written(tmp_path / "again.json", [llava_of(name, *talk[:2]), llava_of(name, *talk[2:])])
    (two,) = read(llava, list(llava.records(source(again), LIMIT))).values()
    assert [m["conversation"] for m in two.messages] == ["000000033471"] * 2 + ["again.json:1"] * 2
    lines = written(tmp_path / "lines" / "mix.jsonl", "\n".join(map(json.dumps, mixture)))
    (same,) = read(llava, list(llava.records(source(lines), LIMIT))).values()
    assert same.messages == annotation.messages


def test_llava_loses_conversations_that_are_none(tmp_path: Path) -> None:
    good = ("<image>\nWhat?", "This.")
    mixture = [
        llava_of("a.jpg", *good, model="vicuna", source="mine"),
        llava_of("a.jpg", "alone"),
        llava_of("a.jpg", *good, conversations=[{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]),
        llava_of("a.jpg", conversations=[{"from": "human", "value": 3}, {"from": "gpt", "value": "y"}]),
        llava_of("a.jpg", conversations=[{"from": "robot", "value": "x"}, {"from": "gpt", "value": "y"}]),
        llava_of("a.jpg", conversations="x"),
        {"id": "text", "conversations": llava_of("", *good)["conversations"]},
        "no object",
    ]
    records = list(llava.records(source(written(tmp_path / "mix.json", mixture)), LIMIT))
    (annotation,) = read(llava, records).values()
    assert [message["content"] for message in annotation.messages] == list(good)
    assert [error for _, error in errors(annotation)] == ["UnknownKey", *["InvalidConversation"] * 5]
    assert lost(records) == [("mix.json:6", "NoImageName"), ("mix.json:7", "NoImageName")]
    with pytest.raises(UserError, match="holds no list of records"):
        list(llava.records(source(written(tmp_path / "one.json", {})), LIMIT))


# -- Winoground ------------------------------------------------------------------------------------------------------

WINOGROUND = {
    "id": 0,
    "image_0": "ex_0_img_0",
    "image_1": "ex_0_img_1",
    "caption_0": "an old person kisses a young person",
    "caption_1": "a young person kisses an old person",
    "tag": "Adjective-Age",
    "secondary_tag": "",
    "num_main_preds": 1,
    "collapsed_tag": "Object",
}


def test_winoground_gives_each_picture_its_caption_and_the_other_as_negative(tmp_path: Path) -> None:
    path = written(tmp_path / "examples.jsonl", json.dumps(WINOGROUND))
    found = read(winoground, list(winoground.records(source(path), LIMIT)))
    assert list(found) == ["examples.jsonl:1/0", "examples.jsonl:1/1"]
    for number, annotation in enumerate(found.values()):
        assert annotation.image == f"ex_0_img_{number}"
        assert annotation.short_caption == WINOGROUND[f"caption_{number}"]
        assert annotation.negatives == {"base": {"swaps": [WINOGROUND[f"caption_{1 - number}"]]}}
        assert not annotation.problems


@pytest.mark.parametrize("changes", [{"caption_1": ""}, {"caption_0": WINOGROUND["caption_1"]}, {"caption_0": 4}])
def test_winoground_without_two_captions_is_no_example(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path / "examples.jsonl", json.dumps({**WINOGROUND, **changes}))
    for record in winoground.records(source(path), LIMIT):
        with pytest.raises(InvalidAnnotation, match="not two different texts"):
            winoground.parse(record.text, record.name)


def test_winoground_notes_unknown_keys_once_and_broken_lines_for_both_pictures(tmp_path: Path) -> None:
    lines = [json.dumps({**WINOGROUND, "mood": 1}), "{", "x" * 5000]
    path = written(tmp_path / "examples.jsonl", "\n".join(lines))
    records = list(winoground.records(source(path), 4000))
    first, second = (winoground.parse(record.text, record.name) for record in records[:2])
    assert errors(first) == [("mood", "UnknownKey")]
    assert errors(second) == []
    for record in records[2:4]:
        with pytest.raises(InvalidAnnotation):
            winoground.parse(record.text, record.name)
    assert [record.error[0] for record in records[4:] if record.error] == ["TooManyBytes"] * 2
