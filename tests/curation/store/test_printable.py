"""Nothing that a file is named moves a terminal's cursor or hides what stands there."""

import pytest

from granary.curation.store.printable import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07.jpg", r"\x1b[2J\x1b]0;title\x07.jpg"),
        ("\x9b31m red", r"\x9b31m red"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
        ("a\rb\x00\x7f", r"a\rb\x00\x7f"),
        ("not utf-8 \udcff", r"not utf-8 \udcff"),
        ("a\u2028b", r"a\u2028b"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(name, shown):
    assert printable(name) == shown


@pytest.mark.parametrize("name", ["plain.jpg", "日本 ü é.png", "می\u200cخواهم", "👩\u200d🚀", "a\tb\nc", "back\\slash"])
def test_words_stay_as_they_are(name):
    assert printable(name) == name


def test_lines_are_written_out_where_one_is_promised():
    assert printable("a\nb", keep="") == r"a\nb"
