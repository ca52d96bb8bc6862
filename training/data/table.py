"""A dataset as a recipe names it: where it is, and what its columns are called; read without Arrow."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from granary.curation.options import Options


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a dataset where they are not granary's; None looks for the usual ones.

    Args:
        image, label, captions, id: of the columns with a use of their own.
        others: (our name, theirs) of any others.
    """

    image: str | None = None
    label: str | None = None
    captions: str | None = None
    id: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    def named(self) -> dict[str, str | None]:
        """Return our name of a column -> that in the dataset, None where it was not given."""
        usual = {"image": self.image, "label": self.label, "captions": self.captions, "id": self.id}
        return {**usual, **dict(self.others)}


USUAL = Columns()


class Table(Options, frozen=True):
    """A dataset, and the names of its columns."""

    path: str = Field(min_length=1, description="a granary run, its dataset folder or a folder of shards; any URL")
    image: str | None = Field(None, description="column of the pictures; default: image, or the only one of pictures")
    label: str | None = Field(None, description="column of the labels; default: label")
    captions: str | None = Field(None, description="column of the captions; default: captions, caption, text, ...")
    id: str | None = Field(None, description="column of the ids; default: id, or else file and row")

    names: dict[str, str] | None = Field(
        None, description="columns of other names: what a method reads -> its name here"
    )

    @property
    def columns(self) -> Columns:
        """The names of its columns."""
        return Columns(self.image, self.label, self.captions, self.id, tuple((self.names or {}).items()))
