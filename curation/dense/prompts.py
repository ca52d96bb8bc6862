"""What a language model is asked, for DCI's purposes in words of our own. A changed prompt gets a new version."""

from __future__ import annotations

import re

VERSION = 1
SUMMARY = """\
Below is a detailed description of a picture. Summarise it in about {words} words, as one caption. Name what matters \
most and where it is. Use only what the description says. Answer with the caption alone.

Description: {text}

Caption:"""
SHORTER = """\
Make this caption of a picture shorter, at most {words} words. Keep what matters most. Answer with the caption alone.

Caption: {text}

Shorter caption:"""
ALTERNATES = """\
Below is a detailed description of a picture. Write {count} different captions for it, each of at most {words} words, \
each about other details or in other words. Use only what the description says. Answer with a numbered list.

Description: {text}

Captions:
1."""
NEGATIVES = {
    "basic": """\
Change this caption of a picture slightly, so that the two captions cannot both be true of one picture: change an \
object, a colour, a number or an action. Keep the rest as it is. Answer with the changed caption alone.

Caption: {text}

Changed caption:""",
    "layout": """\
Change this caption of a picture in one place, so that the picture would be laid out differently: something stands on \
another side, in front instead of behind, inside instead of outside. Answer with the changed caption alone.

Caption: {text}

Changed caption:""",
    "swaps": """\
Rearrange this caption of a picture: use the same words in another order, so that nouns and adjectives are paired \
differently and it describes another picture. Answer with the rearranged caption alone.

Caption: {text}

Rearranged caption:""",
}
NUMBERED = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])\s*", re.MULTILINE)
LABEL = re.compile(r"^(?:(?:changed|rearranged|shorter)?\s*caption|summary)\s*:\s*", re.IGNORECASE)


def answer(text: str) -> str:
    """Return the caption in an answer: its first paragraph on one line, without a label and quotation marks."""
    lines = LABEL.sub("", text.strip()).strip().split("\n\n")[0]
    return " ".join(lines.split()).strip("\"“”'` ")


def listed(text: str) -> list[str]:
    """Return the captions of a numbered list, one a line; the number of the first may be missing."""
    lines = (NUMBERED.sub("", line) for line in text.splitlines())
    return [answered for line in lines if (answered := answer(line))]
