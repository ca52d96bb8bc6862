"""Text engines: given, windows, rules, and a language model with its rules of acceptance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from granary.curation.dense import prompts
from granary.curation.dense.engines import Entry, Given, Rules, Text, Windows, first_negatives, first_summaries, seed_of
from granary.curation.dense.language_model import Ask, Drawn, model_files
from granary.curation.dense.packing import Counter
from granary.curation.dense.recipe import Negatives, Summaries, Writer
from granary.curation.dense.writer import ModelWriter
from granary.curation.errors import UserError

BARN = Entry(
    "e1",
    "base",
    "A red barn stands left of a pond. An old man opens the white door.",
    ["Given one.", "Given two."],
    {"basic": ["b0", "b1"], "swaps": ["s0"]},
    {"sum": 20.0, "basic_1": 3.0, "swaps_0": 5.5},
)
DOOR = Entry(
    "e2", "m-1-sc", "This is an image of door. A white door.\nThe following can also be seen in the image:\nlatch"
)


def words(count: int, first: str = "w") -> str:
    return " ".join([first] * count)


def test_given_negatives_carry_their_scores() -> None:
    found = Given().negatives([BARN, DOOR], ["", ""])
    assert [(text.kind, text.text, text.score) for text in found[0]] == [
        ("basic", "b0", None),
        ("basic", "b1", 3.0),
        ("swaps", "s0", 5.5),
    ]
    assert found[1] == []


def test_engines_are_tried_in_order_for_each_entry() -> None:
    counter = Counter()
    found = first_summaries([BARN, DOOR], [Given(), Windows(counter, 5)])
    assert [[(text.text, text.engine) for text in texts] for texts in found] == [
        [("Given one.", "given"), ("Given two.", "given")],
        [("This is an image of door. A white door.\nlatch", "windows")],
    ]
    hard = first_negatives([BARN, DOOR], ["Given one.", "A white door."], [Given(), Rules(counter, 0)])
    assert [texts[0].engine for texts in hard] == ["given", "rules"]
    assert hard[1][0].prompt == "colour/1"
    assert first_summaries([DOOR], [Given()]) == [[]]


def test_windows_take_the_first_ones() -> None:
    entry = Entry("e", "base", ". ".join(["One two three"] * 30) + ".")
    texts = Windows(Counter(budget=6), 4).summaries([entry])[0]
    assert [text.tokens for text in texts] == [6] * 4


def test_rules_give_the_wanted_number_within_the_budget_from_seeds_of_their_own() -> None:
    counter = Counter()
    positive = "A red barn stands left of a pond by an old tree. An old man in a blue coat opens the white door."
    mask = Entry("e2", "m-0-sc", positive)
    base, single = Rules(counter, 7).negatives([BARN, mask], [positive, positive])
    assert [sum(text.kind == kind for text in base) for kind in ("basic", "layout", "swaps")] == [3, 1, 3]
    assert [sum(text.kind == kind for text in single) for kind in ("basic", "layout", "swaps")] == [1, 1, 1]
    assert max(counter([text.text for text in base])) <= 55
    assert {text.seed for text in base} == {seed_of(7, "e1", kind) for kind in ("basic", "layout", "swaps")}
    assert Rules(counter, 7).negatives([mask, BARN], [positive, positive]) == [single, base]


def test_seeds_are_apart() -> None:
    assert len({seed_of(seed, *names) for seed in (0, 1) for names in (("a", "b"), ("ab",), ("a",), ("b", "a"))}) == 8
    assert 0 <= seed_of(0, "a") < 2**63


# -- what is accepted ------------------------------------------------------------------------------------------------


class Scripted:
    """Answers each kind of prompt with the next of its answers, the last for ever."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers, self.asked = answers, list[Ask]()

    def __call__(self, asks: Sequence[Ask], numbers: Mapping[str, int]) -> list[str]:
        self.asked += asks
        return [self.answer(ask) for ask in asks]

    def answer(self, ask: Ask) -> str:
        names = {prompts.SUMMARY: "summary", prompts.SHORTER: "shorter", prompts.ALTERNATES: "alternates"}
        name = names.get(ask.template) or next(kind for kind, text in prompts.NEGATIVES.items() if text == ask.template)
        answers = self.answers.get(name, [""])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def writer(
    script: Scripted, budget: int = 77, max_input: int = 2000, alternates: bool = False, per_image: int = 3
) -> ModelWriter:
    options, summaries = Writer(model="models/tiny", max_input=max_input), Summaries(alternates=alternates)
    return ModelWriter(script, Counter(budget=budget), options, summaries, Negatives(per_image=per_image))


def test_a_summary_is_asked_for_again_then_made_shorter() -> None:
    script = Scripted(summary=[words(140), words(139)], shorter=[words(100), words(120), words(75)])
    (texts,) = writer(script).summaries([BARN])
    assert [(text.text, text.engine, text.prompt) for text in texts] == [(words(75), "model:tiny", "summary/1")]
    asked = [ask.template for ask in script.asked]
    assert asked == [prompts.SUMMARY] * 2 + [prompts.SHORTER] * 3
    assert texts[0].seed == script.asked[1].seed == seed_of(0, "e1", "summary", "1")
    assert script.asked[4].text == words(100)  # a longer answer is not taken over


@pytest.mark.parametrize(
    ("answers", "accepted"),
    [
        ({"summary": [words(77)], "shorter": [words(90)]}, True),  # above 75, and still within the final limit
        ({"summary": [words(78)], "shorter": [words(90)]}, False),
        ({"summary": [words(140)]}, False),
        ({"summary": [""]}, False),
        ({"summary": [words(1)]}, True),
    ],
)
def test_the_final_limit(answers: dict[str, list[str]], accepted: bool) -> None:
    (texts,) = writer(Scripted(**answers)).summaries([BARN])
    assert bool(texts) == accepted


def test_limits_follow_the_budget() -> None:
    half = writer(Scripted(summary=[words(70)], shorter=[words(39)]), budget=38)
    assert half.summaries([BARN]) == [[]]  # 70 is not below 140 * 38 / 77
    assert half.numbers["words"] == 32


@pytest.mark.parametrize(
    ("length", "accepted"), [(5, False), (6, True), (20, True), (25, True), (69, True), (70, False)]
)
def test_negatives_are_accepted_by_length(length: int, accepted: bool) -> None:
    script = Scripted(basic=[words(length, "x")], layout=[""], swaps=[""], shorter=[words(25, "x")])
    (texts,) = writer(script, per_image=1).negatives([BARN], [words(20)])
    assert [text.text for text in texts] == ([words(min(length, 25), "x")] if accepted else [])


def test_a_negative_that_stays_too_long_or_says_the_same_is_none() -> None:
    long = Scripted(
        basic=[words(40, "x")], layout=[words(20).upper()], swaps=[words(21, "x")], shorter=[words(26, "x")]
    )
    (texts,) = writer(long, per_image=1).negatives([BARN], [words(20)])
    assert [(text.kind, text.text) for text in texts] == [("swaps", words(21, "x"))]
    (texts,) = writer(Scripted(basic=["a b"]), per_image=3).negatives([BARN], ["a c"])
    assert [text.text for text in texts] == ["a b"]  # three times the same counts once


def test_alternates_are_asked_for_until_there_are_more_than_enough() -> None:
    lists = ["\n".join(f"{n}. {letter} {n}" for n in range(1, 7)) for letter in "abcdefgh"]
    script = Scripted(summary=["short"], alternates=[lists[0], lists[0], lists[1], lists[2]])
    base, mask = writer(script, alternates=True).summaries([BARN, DOOR])
    assert len(base) - 1 > 8
    assert len(mask) - 1 > 4
    assert [text.prompt for text in base] == ["summary/1", *["alternate/1"] * (len(base) - 1)]
    assert len({text.text for text in base}) == len(base)
    script = Scripted(summary=["short"], alternates=["1. " + words(77)])
    assert [len(texts) for texts in writer(script, alternates=True).summaries([BARN])] == [1]  # 77 is not below 77


def test_long_descriptions_are_cut_between_windows() -> None:
    script = Scripted(summary=["short"])
    writer(script, max_input=100).summaries([Entry("e", "base", ". ".join([words(10, "Word")] * 50) + ".")])
    assert len(script.asked[0].text.split()) == 70


def test_answers_lose_labels_and_quotes() -> None:
    assert prompts.answer('Caption: "A red\n barn."\n\nI hope this helps!') == "A red barn."
    assert prompts.listed("A.\n2) B.\n\n- C.\n*  \n") == ["A.", "B.", "C."]


# -- a model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random GPT-2 of two layers with a word tokenizer, saved as any model is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("tiny"))
    vocabulary = {token: place for place, token in enumerate(["<e>", "?", *(f"w{n}" for n in range(38))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", unk_token="?").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=256, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def model_writer(model: str, batch: int = 4, seed: int = 0, max_input: int = 60) -> ModelWriter:
    writer = Writer(model=model, device="cpu", dtype="float32", batch=batch, attempts=2, max_input=max_input)
    negatives = Negatives(per_image=2, per_mask=1)
    return ModelWriter.of(writer, Summaries(alternates=False), negatives, Counter(budget=20), seed)


def entries(count: int) -> list[Entry]:
    return [Entry(f"e{n}", "base", f"w{n} w2 w3 w{n + 4}. " * 5) for n in range(count)]


def test_a_model_writes_texts_that_depend_on_seed_and_entry_alone(tiny: str) -> None:
    def summaries(asked: list[Entry], **options: int) -> list[list[Text]]:
        return model_writer(tiny, **options).summaries(asked)

    whole = summaries(entries(6))
    assert sum(map(len, whole)) >= 4
    assert all(len(text.text.split()) <= 20 for texts in whole for text in texts)
    assert summaries(entries(6)) == whole
    assert summaries(entries(6)[::-1])[::-1] == whole
    assert summaries(entries(6), batch=1) == whole
    assert summaries(entries(2)) == whole[:2]
    assert summaries(entries(6), seed=1) != whole


def test_a_model_writes_negatives_with_their_record(tiny: str) -> None:
    positive = "w1 w2 w3 w4 w5 w6 w7 w8"
    (found,) = model_writer(tiny).negatives(entries(1), [positive])
    for text in found:
        assert text.engine.startswith("model:")
        assert text.prompt == f"{text.kind}/1"
        assert len(text.text.split()) <= 8 + round(5 * 20 / 77)
        assert text.text != positive


def test_a_text_that_the_model_has_no_room_for_is_shortened(tiny: str) -> None:
    entry = Entry("e", "base", "w1 w2 w3. " * 400)
    assert len(model_writer(tiny, max_input=5000).summaries([entry])) == 1


def test_draws_follow_the_softmax() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    drawn = Drawn([5], 1.0)
    counts = torch.bincount(torch.stack([drawn(None, logits).argmax() for _ in range(4000)]), minlength=3) / 4000  # type: ignore[arg-type]
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)
    cold = Drawn([5], 0.05)
    assert {int(cold(None, logits).argmax()) for _ in range(50)} == {0}  # type: ignore[arg-type]


def test_what_is_no_model_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"writer\.model"):
            model_files(str(path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"writer\.model"):
        model_writer(str(tmp_path)).summaries(entries(1))
