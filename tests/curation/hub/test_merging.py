"""Two cards become one: no word and no key that somebody wrote is lost, however often it is done."""

from __future__ import annotations

import pytest

from granary.curation.errors import UserError
from granary.curation.hub.card import parse_card, write_card
from granary.curation.hub.licences import LICENCES, check_licence
from granary.curation.hub.merging import check_kept, difference, merge_cards
from granary.curation.store import schema

FEATURES = {"default": schema.curated_features()}
FACTS = {"name": "cats", "samples": 3, "shards": 1, "bytes": 9}
FOREIGN = """---
license: cc-by-4.0
extra_gated_prompt: "You agree not to identify people."
extra_gated_fields:
  Name: text
viewer: false
tags: [mine]
configs:
- config_name: old
---
# Our pictures

Words that took a day.
"""


def card(earlier: str = "", licence: str = "unknown") -> str:
    return write_card(FACTS, {"licence": licence}, FEATURES, earlier)


def over(theirs: str, ours: str | None = None) -> str:
    return card(merge_cards(card() if ours is None else ours, theirs))


def with_words(page: str, words: str, section: str = "about") -> str:
    return page.replace(f"<!-- yours: begin {section} -->\n", f"<!-- yours: begin {section} -->\n{words}")


def test_gates_viewer_licence_and_words_of_a_card_that_granary_did_not_write_stay() -> None:
    page = over(FOREIGN)
    header, sections = parse_card(page)
    assert header["extra_gated_prompt"] == "You agree not to identify people."
    assert header["extra_gated_fields"] == {"Name": "text"}
    assert header["viewer"] is False
    assert header["license"] == "cc-by-4.0"
    assert header["tags"] == ["granary", "dataset-curation", "mine"]
    assert [one["config_name"] for one in header["configs"]] == ["default"]  # what follows the run is the run's
    assert sections["about"] == "# Our pictures\n\nWords that took a day.\n"


@pytest.mark.parametrize(
    "theirs", [FOREIGN, FOREIGN.replace("\n", "\r\n"), f"\ufeff{FOREIGN}", "Words that took a day.\n"]
)
def test_a_second_time_changes_nothing(theirs: str) -> None:
    page = over(theirs)
    assert "Words that took a day." in page
    assert over(page) == page
    assert difference(page, over(page)) == []


def test_words_of_both_sides_stay() -> None:
    ours, theirs = with_words(card(), "written here\n"), with_words(card(), "written there\n")
    page = over(theirs, ours)
    assert parse_card(page)[1]["about"] == "written here\n\nwritten there\n"
    assert over(page, ours) == page
    assert parse_card(over(with_words(card(), "more\n", "more"), ours))[1]["more"] == "more\n"


@pytest.mark.parametrize(("ours", "licence"), [("unknown", "cc-by-4.0"), ("mit", "mit")])
def test_a_licence_that_is_stated_here_wins(ours: str, licence: str) -> None:
    assert parse_card(card(merge_cards(card(), FOREIGN), ours))[0]["license"] == licence


def test_a_header_that_is_no_yaml_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"README\.md on the Hub is not YAML"):
        merge_cards(card(), "---\na: [\n---\nwords\n")


def test_words_without_a_place_in_the_template_are_no_small_thing() -> None:
    earlier = merge_cards(card(), with_words(card(), "written there\n"))
    page = write_card(FACTS, {}, FEATURES, earlier, template="---\n{{ header }}---\n{{ slot('more') }}\n")
    with pytest.raises(UserError, match="no place for the section 'about'"):
        check_kept(page, earlier)
    check_kept(card(earlier), earlier)


def test_the_difference_shows_what_goes_and_what_comes() -> None:
    lines = difference("---\ny: 'b'\nx: 1\n---\na\nb\n", "---\nx: 1\ny: b\n---\na\nc\n")
    assert lines[2:] == ["@@ -5,2 +5,2 @@", " a", "-b", "+c"]
    assert "-words\n" not in difference("words\n", card())


@pytest.mark.parametrize(
    ("licence", "hint"),
    [("CC BY 4.0", "did you mean cc-by-4.0?"), ("Apache-2.0", "did you mean apache-2.0?"), ("ours", "or other")],
)
def test_a_licence_that_the_hub_does_not_know_is_refused(licence: str, hint: str) -> None:
    with pytest.raises(UserError, match=r"is not an identifier that the Hub knows") as caught:
        check_licence(licence)
    assert hint in str(caught.value)


@pytest.mark.parametrize("licence", ["other", "unknown", "openrail++", "lppl-1.3c", "cc0-1.0"])
def test_the_hubs_own_identifiers_are_taken(licence: str) -> None:
    check_licence(licence)
    assert len(LICENCES) == 83
