"""Windows of a token budget: nothing cut inside a word, nothing dropped, nothing over the budget."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from granary.curation.dense.packing import Counter, sentences, windows
from granary.curation.errors import UserError

PIECES = [
    "word",
    "a",
    " ",
    " ",
    ". ",
    ", ",
    "\n",
    "! ",
    "(x)",
    "é",
    "。",
    "Dr. ",
    "باب ",
    "؟ ",
    "longer ",
    "x" * 30,
    '." ',
    "; ",
]


def split_by(text: str) -> list[str]:
    return [text[start:stop] for start, stop in sentences(text)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-pair tokenizer that puts a begin and an end around a text, as CLIP's does."""
    trained = Tokenizer(models.BPE(unk_token="?"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = ["a red barn stands by a pond with a white door and clouds over it"] * 3
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=60, special_tokens=["?", "<b>", "<e>"]))
    trained.post_processor = processors.TemplateProcessing(single="<b> $A <e>", special_tokens=[("<b>", 1), ("<e>", 2)])
    trained.enable_truncation(8)  # as the files of CLIP models have it: it must not shorten a count
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(str(folder / "tokenizer.json"))
    return str(folder)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60), st.integers(1, 12))
def test_windows_hold_every_character_and_no_window_is_too_long(pieces: list[str], budget: int) -> None:
    text, counter = "".join(pieces), Counter(budget=budget)
    found = list(windows(text, counter))
    assert "".join("".join(window.text for window in found).split()) == "".join(text.split())
    assert all(window.tokens == len(window.text.split()) <= budget for window in found)
    if "。" not in text:
        assert [word for window in found for word in window.text.split()] == text.split()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(9, 20))
def test_sentences_that_fit_are_never_cut_and_windows_are_as_full_as_can_be(sizes: list[int], budget: int) -> None:
    said = [" ".join(["W" + "o" * n] * n) + "." for n in sizes]
    found = [window.text for window in windows(" ".join(said), Counter(budget=budget))]
    assert [part for window in found for part in split_by(window)] == said
    counts = [len(window.split()) for window in found]
    nexts = [len(split_by(window)[0].split()) for window in found[1:]]
    assert all(count + following > budget for count, following in zip(counts, nexts, strict=False))


def test_a_long_sentence_is_cut_between_clauses_before_words() -> None:
    text = "A barn with a red roof, a white door and a window; beside it stands a very old and very tall tree."
    found = [window.text for window in windows(text, Counter(budget=11))]
    assert found == [
        "A barn with a red roof,",
        "a white door and a window;",
        "beside it stands a very old and very tall tree.",
    ]
    assert [window.text for window in windows("one two three four five", Counter(budget=2))] == [
        "one two",
        "three four",
        "five",
    ]


def test_abbreviations_numbers_and_quotes_do_not_end_a_sentence() -> None:
    text = 'A wall, approx. 3.5 m high, stands by Dr. Smith\'s pond. "Look!" he says. '
    text += "J. K. Rowling, e.g. Potter. Is it? Yes."
    assert split_by(text) == [
        "A wall, approx. 3.5 m high, stands by Dr. Smith's pond.",
        '"Look!" he says.',
        "J. K. Rowling, e.g. Potter.",
        "Is it?",
        "Yes.",
    ]
    assert split_by("他说。这是谷仓！好的。") == ["他说。", "这是谷仓！", "好的。"]
    assert split_by("هل هذا باب؟ نعم۔ هذا.") == ["هل هذا باب؟", "نعم۔", "هذا."]


def test_tokens_are_counted_with_those_around_the_text(tokenizer: str) -> None:
    counter = Counter(tokenizer)
    assert (counter.unit, counter.budget, counter.overhead) == ("tokens", 77, 2)
    assert Counter().unit == "words"
    assert Counter().budget == 55
    own = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    own.no_truncation()
    texts = ["a red barn", "", "clouds over a pond with a door " * 9]
    assert counter(texts) == [len(own.encode(text).ids) for text in texts]
    assert counter(texts)[2] > 8


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), budget=st.integers(12, 40))
def test_token_windows_fit_and_hold_every_word(tokenizer: str, seed: int, budget: int) -> None:
    rng = random.Random(seed)
    said = "a red barn, stands by. A pond with; white door! clouds over it unknownword"
    text, counter = " ".join(rng.choices(said.split(), k=60)), Counter(tokenizer, budget)
    found = list(windows(text, counter))
    assert [word for window in found for word in window.text.split()] == text.split()
    assert [window.tokens for window in found] == counter([window.text for window in found])
    assert all(window.tokens <= budget for window in found)


def test_a_single_word_over_the_budget_stays_whole(tokenizer: str) -> None:
    found = list(windows("a " + "barn" * 40 + " door", Counter(tokenizer, 10)))
    assert [window.text for window in found] == ["a", "barn" * 40, "door"]
    assert found[1].tokens > 10


def test_a_folder_with_the_older_files_of_a_tokenizer_works(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters), "ab</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    assert Counter(str(tmp_path))(["ab cd"]) == [2 + 1 + 2]


def test_what_is_no_tokenizer_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (str(tmp_path), str(tmp_path / "nothing"), str(tmp_path / "tokenizer.json")):
        with pytest.raises(UserError, match=r"budget\.tokenizer"):
            Counter(path)


def test_a_text_of_200_000_words_is_packed_in_time_that_grows_with_it() -> None:
    found = list(windows(" ".join(["word"] * 200_000), Counter()))
    assert len(found) == -(-200_000 // 55)
    assert sum(window.tokens for window in found) == 200_000


def test_real_descriptions_lose_no_word() -> None:
    path = SHARED / "dense_descriptions_dev.jsonl.gz"
    if not path.exists():
        pytest.skip("shared/data is not beside the checkout")
    counter = Counter()
    for line in gzip.decompress(path.read_bytes()).splitlines():
        text = json.loads(line)["description"]
        found = list(windows(text, counter))
        assert [word for window in found for word in window.text.split()] == text.split()
        assert max(window.tokens for window in found) <= 55
        ends = [window.text.rstrip("\"'”’)")[-1] for window in found if len(window.text.split()) > 3]
        assert sum(end in ".!?:" for end in ends) >= 0.5 * len(ends)
