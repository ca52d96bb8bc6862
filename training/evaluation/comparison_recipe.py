"""What `granary compare` is told; read without torch."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage
from granary.training.data.table import Table

NAME = re.compile(r"[\w .+-]+")  # of a model before "=": without what addresses and options have


class CompareRecipe(Options, frozen=True):
    """Compare models on the same pictures: CKA of all their sites, probes of all layers, attention."""

    models: list[str] = Field(
        min_length=1,
        description="each a training directory, a checkpoint, hf:ID_OR_PATH, random:TRAIN_OR_RECIPE or pixels; "
        "NAME=MODEL gives it a name",
    )
    data: Table = Field(description="a run, its dataset, or any Parquet files with pictures; a path or URL")
    out: str = Field(description="page to write, an .html file; the numbers go beside it, as .json")
    split: str = Field("test", description="split whose pictures are compared; probes learn from split train")
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the ids that is test, without a column split")
    samples: int = Field(1024, ge=4, description="pictures at most, drawn by hash of their ids")
    cka_batch: int = Field(128, ge=4, description="pictures of a batch of CKA")
    probes: bool = Field(
        True, description="whether a linear probe and kNN of every layer are drawn, where data have labels"
    )
    probe_samples: int = Field(5000, ge=10, description="training pictures of the probes at most, and test pictures")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: str = Field("float32", description="float32, bfloat16 or float16")
    batch: int = Field(64, ge=1, description="samples encoded at once; changes speed only")
    seed: int = Field(0, ge=0, lt=2**63, description="decides which pictures, their order, and random weights")

    @field_validator("models", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("out")
    @classmethod
    def _page(cls, out: str) -> str:
        if not out.endswith(".html"):
            raise ValueError("give a file that ends with .html")
        return out

    def named(self) -> dict[str, str]:
        """Return the models by name. Raises UserError where two have one name."""
        names = dict[str, str]()
        for text in self.models:
            name, equals, model = text.partition("=")
            if not equals or not NAME.fullmatch(name) or storage.exists(text):  # a folder may be called lr=0.1
                name = model = text
            if name in names:
                raise UserError(f"models: two have the name {name!r}; write NAME={model}")
            names[name] = model
        return names
