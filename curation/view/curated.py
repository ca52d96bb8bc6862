"""What a page is told of a run of curate beside its rows: pairs and thresholds, resemblance, the map, decisions."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from granary.curation.encoders import Encoder, load_encoder
from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError, decode
from granary.curation.recipe import CurateRecipe
from granary.curation.view.answers import BYTES, Answer, Request, as_json, row_of
from granary.curation.view.catalogue import Catalogue
from granary.curation.view.decided import DecisionFile
from granary.curation.view.pairs import Pairs, pairs_of
from granary.curation.view.space import SPACES, Space

BUILTIN = "builtin:"  # encoders without weights, which any machine has


class Curated:
    """Answers what only a run of curate can.

    Args:
        catalogue: of the run.
        recipe: of the run.
        decisions: the file that decisions go to.
    """

    def __init__(self, catalogue: Catalogue, recipe: CurateRecipe, decisions: DecisionFile) -> None:
        self.catalogue, self.recipe, self.decisions = catalogue, recipe, decisions
        self.spaces = {name: Space(catalogue, stage) for name, stage in SPACES.items() if catalogue.run.parts(stage)}
        self._lock = threading.Lock()
        self.routes: Mapping[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "pairs"): self.edges,
            ("GET", "threshold"): self.threshold,
            ("GET", "similar"): self.similar,
            ("POST", "similar"): self.similar_to_file,
            ("GET", "map"): self.map,
            ("GET", "decisions"): self.decided,
            ("POST", "decisions"): self.decide,
        }

    @functools.cached_property
    def _pairs(self) -> Pairs:
        return pairs_of(self.catalogue, self.recipe)

    @property
    def pairs(self) -> Pairs:
        """The near duplicates, found once however many ask."""
        with self._lock:
            return self._pairs

    def edges(self, request: Request) -> Answer:
        """Give the pairs, the most similar first: similarities as float32, then the rows of both sides as uint32."""
        columns = (self.pairs.similarity.astype("<f4"), self.pairs.i.astype("<u4"), self.pairs.j.astype("<u4"))
        return Answer(b"".join(column.tobytes() for column in columns), BYTES)

    def threshold(self, request: Request) -> Answer:
        """Tell the threshold of the run, and the lowest whose pairs are known."""
        pairs = self.pairs
        return as_json({"threshold": pairs.threshold, "lowest": pairs.lowest, "note": pairs.note})

    def similar(self, request: Request) -> Answer:
        """Give the rows most similar to one, itself first."""
        return _ranked(*self._space(request).similar(row_of(self.catalogue, request.query.get("row", ""))))

    def similar_to_file(self, request: Request) -> Answer:
        """Give the rows most similar to the picture of the body, by the copy encoder."""
        encoder = self._encoder
        try:
            picture = decode(request.body, self.recipe.decode, encoder.side).image
        except DecodeError as error:
            raise UserError(f"similar: the file is no picture that granary takes ({error.kind})") from None
        return _ranked(*self.spaces["copy"].nearest(encoder.embed([picture])[0]))

    @property
    def takes_files(self) -> bool:
        """Whether what resembles a file can be found: its encoder is there."""
        return self.recipe.encoder.copy_.startswith(BUILTIN)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        spec = self.recipe.encoder.copy_
        if not self.takes_files:
            raise UserError(f"similar: {spec} is not loaded here; a file of yours is compared by {BUILTIN}copy alone")
        return load_encoder(spec, "cpu")

    def map(self, request: Request) -> Answer:
        """Give x and y of every row as float32, not a number where it has no vector."""
        space = self._space(request)
        with self._lock:
            return Answer(space.map.astype("<f4").tobytes(), BYTES)

    def _space(self, request: Request) -> Space:
        space = self.spaces.get(request.query.get("space", ""))
        if space is None:
            raise UserError(f"space: the run has the embeddings {', '.join(self.spaces)}")
        return space

    def decided(self, request: Request) -> Answer:
        """Tell all decisions."""
        return as_json({"decisions": self.decisions.listed()})

    def decide(self, request: Request) -> Answer:
        """Decide about rows, or take back what was decided."""
        try:
            asked = json.loads(request.body)
            word, rows, other = str(asked["decision"]), list(asked["rows"]), asked.get("other")
            if not all(type(row) is int for row in [*rows, *([] if other is None else [other])]):
                raise ValueError("rows are numbers")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"decisions: give decision, rows and other as JSON ({str(error)[:100]})") from None
        self.decisions.change(word, rows, other)
        return self.decided(request)


def _ranked(rows: NDArray[np.int64], similarities: NDArray[np.float32]) -> Answer:
    return as_json({"rows": rows.tolist(), "similarities": similarities.tolist()})
