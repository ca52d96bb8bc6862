"""The text that names an encoder, taken apart."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl

from granary.curation.errors import UserError
from granary.curation.sources.files import absolute


@dataclass(frozen=True)
class EncoderSpec:
    """`KIND:TARGET?option=value&...`: the text itself, its kind, its target and its options."""

    text: str
    kind: str
    target: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> EncoderSpec:
        """Take a spec apart; raises UserError when it has no kind or no target."""
        kind, _, rest = text.partition(":")
        target, _, query = rest.partition("?")
        if not target:
            raise UserError(f"encoder '{text}' names nothing to load; write KIND:WHAT, such as builtin:copy")
        return cls(text, kind, target, dict(parse_qsl(query, keep_blank_values=True)))

    @property
    def anywhere(self) -> str:
        """The text with a local path made absolute, so that it names the same thing from any folder."""
        path = os.path.expanduser(self.target)
        local = self.kind in ("torchscript", "granary") or (self.kind == "hf" and os.path.isdir(path))
        if not local:
            return self.text
        query = self.text.partition("?")[1:]
        return f"{self.kind}:{absolute(self.target)}{''.join(query)}"

    def check_options(self, *known: str) -> None:
        """Raise UserError for an option that is not among `known`."""
        for option in self.options:
            if option not in known:
                allowed = ", ".join(known) or "none"
                raise UserError(f"encoder '{self.text}' has an unknown option '{option}'; known: {allowed}")

    def choice(self, option: str, default: str, *allowed: str) -> str:
        """Return the value of an option that must be one of `allowed`."""
        value = self.options.get(option, default)
        if value not in allowed:
            choices = " or ".join(allowed)
            raise UserError(f"encoder '{self.text}': {option} is '{value}'; it must be {choices}")
        return value

    def positive(self, option: str, default: int) -> int:
        """Return the value of an option that must be a positive whole number."""
        value = self.options.get(option, str(default))
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"encoder '{self.text}': {option} is '{value}'; it must be a number above 0")
        return int(value)
