"""What both halves of a curation share: the recipe as it will run, and how the images of a role are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from granary.curation.encoders.choice import AUTO, LAYOUT, MODEL, choose_encoder
from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.images.filters import Filters
from granary.curation.recipe import ROLES, CurateRecipe, Role
from granary.curation.runs.decisions import Decisions, load_decisions
from granary.curation.runs.facts import read_recipe
from granary.curation.runs.run import Run
from granary.curation.sources import Source, check_apart, files, resolve
from granary.curation.sources.contents import LeftOut
from granary.curation.steps import embed, listing
from granary.curation.steps.captions import load_entries
from granary.curation.steps.probe import check_first_images, check_named_keys
from granary.curation.steps.tally import Tally, tally
from granary.curation.steps.unreadable import what_allows
from granary.pipelines.engine.encoders import plan_encoder
from granary.pipelines.engine.stages import Stages
from granary.pipelines.kinds.join_prices import price_note

OTHERWISE: dict[Role, str] = {  # what helps too where a set holds no image
    "pool": "leave it out of the pool",
    "seeds": "leave --seeds out to keep all",
    "references": "leave --references out",
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A recipe made ready before any work, once for all that reads it.

    Args:
        recipe: with absolute sources and encoders and every threshold filled in.
        copy: tells near duplicates and leaks.
        retrieval: tells resemblance; None where nothing is retrieved, clustered or drawn.
        dedup_threshold: cosine above which two pictures are linked.
        leak_threshold: cosine above which an image leaks.
        decisions: of a person; None where there is no file of them.
    """

    recipe: CurateRecipe
    copy: PlannedEncoder
    retrieval: PlannedEncoder | None
    dedup_threshold: float
    leak_threshold: float
    decisions: Decisions | None = None


def prepare(recipe: CurateRecipe, choose: Callable[[], str] = choose_encoder) -> Prepared:
    """Resolve the sources and load the encoders of a recipe.

    Args:
        recipe: as it was given.
        choose: says what the retrieval encoder `auto` stands for; asked only where there is one to load.

    Raises:
        UserError: a source is not there, an encoder cannot be loaded, its device is not there, or the run would lie
            among its own images.
    """
    _check_device(recipe.encoder.device)
    recipe = recipe.model_copy(update={role: [resolve(source) for source in recipe.sources[role]] for role in ROLES})
    check_apart(recipe.out, recipe.sources)
    _check_threshold(recipe)
    recipe, decisions = _with_decisions(_with_entries(recipe))
    recipe = _with_encoder_chosen(recipe, choose)
    device = recipe.encoder.device
    copy, retrieval = plan_encoder(recipe.encoder.copy_, device), _retrieval_encoder(recipe)
    facts = encoder_of(copy, device)
    dedup, leaks = recipe.dedup.threshold or facts.copy_threshold, recipe.leaks.threshold or facts.leak_threshold
    spec = retrieval.spec if retrieval else _anywhere(recipe.encoder.retrieval)
    filled = {
        "encoder": recipe.encoder.model_copy(update={"copy_": copy.spec, "retrieval": spec}),
        "dedup": recipe.dedup.model_copy(update={"threshold": dedup}),
        "leaks": recipe.leaks.model_copy(update={"threshold": leaks}),
    }
    return Prepared(recipe.model_copy(update=filled), copy, retrieval, dedup, leaks, decisions)


def _with_decisions(recipe: CurateRecipe) -> tuple[CurateRecipe, Decisions | None]:
    """Return the recipe with the absolute path of its decisions, and these; raises UserError where they are none."""
    if not recipe.decisions:
        return recipe, None
    decisions = load_decisions(recipe.decisions)
    return recipe.model_copy(update={"decisions": files.absolute(recipe.decisions)}), decisions


def _with_entries(recipe: CurateRecipe) -> CurateRecipe:
    """Return the recipe with the absolute path of the entries of captions; raises UserError where they are none."""
    options = recipe.balance.captions
    if options.entries in ("", "words"):
        return recipe
    load_entries(options.entries)
    options = options.model_copy(update={"entries": files.absolute(options.entries)})
    return recipe.model_copy(update={"balance": recipe.balance.model_copy(update={"captions": options})})


def _check_threshold(recipe: CurateRecipe) -> None:
    """Raise UserError for a smallest similarity that nothing is compared with."""
    if recipe.retrieval.threshold is not None and not any(seeds.mode == "sample" for seeds in recipe.seeds):
        raise UserError(
            "retrieval.threshold: there is no seed set of mode sample to retrieve by similarity; "
            "give --seeds, or leave it out"
        )


def _with_encoder_chosen(recipe: CurateRecipe, choose: Callable[[], str]) -> CurateRecipe:
    """Return the recipe with a retrieval encoder in the place of `auto`: that of the run, where it has begun."""
    if recipe.encoder.retrieval != AUTO or not _retrieves(recipe):
        return recipe
    chosen = _chosen_before(recipe.out) or choose()
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"retrieval": chosen})})


def _chosen_before(out: str) -> str:
    """Return what `auto` may have stood for when the run was begun; "" where none was."""
    try:
        chosen = read_recipe(out, CurateRecipe).encoder.retrieval
    except UserError:
        return ""
    return chosen if chosen == LAYOUT or chosen.startswith(f"hf:{MODEL}?revision=") else ""


def _anywhere(spec: str) -> str:
    return spec if spec == AUTO else EncoderSpec.parse(spec).anywhere


def _retrieves(recipe: CurateRecipe) -> bool:
    """Say whether anything is retrieved, clustered or drawn."""
    return bool(recipe.seeds) or recipe.semdedup.epsilon is not None or recipe.balance.target is not None


def _check_device(device: str) -> None:
    """Raise UserError where a device cannot be used; of built-in encoders what compares their vectors uses it."""
    if device in ("auto", "cpu"):  # always there, so that a run that stands imports no torch
        return
    from granary.curation.encoders.inference import torch_device

    try:
        torch_device(device)
    except UserError as error:
        raise UserError(f"encoder.{error}") from None


def _retrieval_encoder(recipe: CurateRecipe) -> PlannedEncoder | None:
    """Load the retrieval encoder where the recipe asks for it."""
    if not _retrieves(recipe):
        if recipe.encoder.retrieval not in (AUTO, LAYOUT):
            raise UserError(
                f"encoder.retrieval is {recipe.encoder.retrieval}, but nothing is retrieved by resemblance; "
                "give --seeds, --semdedup.epsilon or --balance.target, or leave it out"
            )
        return None
    planned = plan_encoder(recipe.encoder.retrieval, recipe.encoder.device)
    dimension, options = encoder_of(planned, recipe.encoder.device).dimension, recipe.retrieval
    if options.index == "ivfpq" and dimension % options.code_bytes:
        raise UserError(
            f"retrieval.code_bytes: {options.code_bytes} does not divide {dimension}, the dimension of "
            f"{planned.spec}; give a divisor of it"
        )
    return planned


@dataclasses.dataclass(frozen=True)
class Reading:
    """The stages of a curation, and how it reads images.

    Args:
        stages: run so far.
        prepared: the recipe as it runs.
        left_out: of every role that was listed, what its sources passed over.
    """

    stages: Stages
    prepared: Prepared
    left_out: dict[Role, list[LeftOut]] = dataclasses.field(default_factory=dict)

    @property
    def recipe(self) -> CurateRecipe:
        """The recipe, with every default filled in."""
        return self.prepared.recipe

    @property
    def run(self) -> Run:
        """The run directory."""
        return self.stages.run_directory

    def options(self, encoder: PlannedEncoder) -> embed.EmbedOptions:
        """Return how a unit decodes and embeds."""
        options, recipe = self.recipe.encoder, self.recipe
        return embed.EmbedOptions(encoder, options.device, options.batch, recipe.decode, recipe.max_unreadable)

    def embed_role(self, role: Role, encoder: PlannedEncoder, filters: Filters = embed.NO_FILTERS) -> None:
        """Read, hash, decode and embed everything the sources of a role hold."""
        listed = self.write_listing(self.run, role)
        self.left_out[role] = listed.left_out
        if role == "pool" and (note := price_note(sum(listed.weights), self.recipe.dedup)):
            self.stages.runner.progress.console.print(f"note: {note}", soft_wrap=True)
        jobs = self.embed_units(role, encoder, listed, filters)
        self.stages.parallel(role, embed.embed, jobs, [], "images", listed.weights)
        self.check_readable(role)

    def write_listing(self, run: Run, role: Role) -> listing.Listing:
        """List what the sources of a role hold; raises UserError for a pool without files.

        Args:
            run: where the listing is written.
            role: which sources.
        """
        listed = listing.write_listing(run, role, self.recipe.unit_rows)
        if role == "pool" and not listed.units:
            paths = self._paths(role)
            raise UserError(f"pool: {paths} holds no files; give a folder, shards or a list with images in it")
        return listed

    def embed_units(
        self, role: Role, encoder: PlannedEncoder, listed: listing.Listing, filters: Filters = embed.NO_FILTERS
    ) -> list[embed.EmbedUnit]:
        """Return the jobs that embed what was listed."""
        options, mirror = self.options(encoder), role == "pool" and self.recipe.dedup.mirror
        return [embed.EmbedUnit(unit, options, filters, mirror) for unit in listed.units]

    def check_first_images(self) -> None:
        """Raise UserError where a set of any role begins, and ends, without an image."""
        for role in ROLES:
            for source in self.recipe.sources[role]:
                check_first_images(role, source, self.recipe.decode)
                check_named_keys(role, source, self.recipe.decode)

    def check_readable(self, role: Role) -> None:
        """Raise UserError where a set of an embedded role holds no readable image."""
        for source, counted in zip(self.recipe.sources[role], self.tallies(role), strict=True):
            if not counted.images:
                raise UserError(
                    f"{role}: {source.path}, read as {source.kind}, holds no readable image ({counted.reasons}); "
                    f"give images, or {OTHERWISE[role]}. {what_allows(counted.reasons)}".rstrip(". ")
                )

    def tallies(self, role: Role) -> list[Tally]:
        """Return what every source of a role gave; none where it was not read."""
        listed = self.left_out.get(role, [])
        return [tally(self.stages.markers[role], number, left_out) for number, left_out in enumerate(listed)]

    def counted(self) -> Iterator[tuple[Role, Source, Tally]]:
        """Yield what every source gave that has been read."""
        for role in filter(self.left_out.__contains__, ROLES):
            for source, counted in zip(self.recipe.sources[role], self.tallies(role), strict=True):
                yield role, source, counted

    def unreadable_notes(self) -> list[str]:
        """Return a sentence for every set of which more than max_unreadable could not be read."""
        return [
            f"{counted.lost:,} of the {counted.files:,} files of {source.name} ({role}) could not be read "
            f"({counted.reasons}), more than max_unreadable {self.recipe.max_unreadable}."
            for role, source, counted in self.counted()
            if counted.lost > self.recipe.max_unreadable * counted.files
        ]

    def _paths(self, role: Role) -> str:
        return ", ".join(source.path for source in self.recipe.sources[role])
