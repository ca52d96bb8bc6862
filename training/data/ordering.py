"""The group `order` of a training recipe; read without numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from granary.curation.options import Options

Kind = Literal["plain", "balanced", "subsample", "few_classes"]


class Ordering(Options, frozen=True):
    """The order of the samples."""

    kind: Kind = Field(
        "plain",
        description="plain: every row once an epoch; balanced: all groups equally often, rows of small ones again and "
        "again; subsample: every group cut to the size of the smallest, then plain; few_classes: each batch from a few "
        "groups drawn anew, not once an epoch",
    )
    by: str = Field("label", description="column whose values are the groups; of several, A,B, each combination is one")
    classes: int = Field(2, ge=1, description="groups in a batch of few_classes")

    @property
    def columns(self) -> list[str]:
        """The columns that make the groups; none of a plain order."""
        return [] if self.kind == "plain" else [name.strip() for name in self.by.split(",")]


PLAIN = Ordering()
