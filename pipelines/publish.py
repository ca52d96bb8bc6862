"""Publish a run or a training to the Hugging Face Hub: gather, check, send."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console

from granary.curation.errors import UserError, needs
from granary.curation.hub.card import written_size
from granary.curation.hub.client import Repository, send
from granary.curation.hub.licences import check_licence
from granary.curation.hub.merging import difference
from granary.curation.hub.preflight import problems
from granary.curation.hub.publication import Publication, gather
from granary.training.report import training_facts

QUIET = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "fsspec")


def publish(
    url: str,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    branch: str = "main",
    ledger: bool = False,
    embeddings: bool = False,
    licence: str | None = None,
) -> None:
    """Publish a finished run as a dataset, a training as a model; killed, the same call goes on where it stopped.

    Args:
        url: of the run directory, or of the training directory.
        repo: ORG/NAME.
        private: create the repository as private.
        dry_run: check everything and print what would be sent.
        branch: to write to; created where it is missing.
        ledger: publish the ledger of a run too, as a config of its own.
        embeddings: publish the copy descriptors of the kept images too, as a config of their own.
        licence: an identifier that the Hub knows, in the place of the recipe's; a training's recipe has none.

    Raises:
        UserError: the run or training cannot be published, or the Hub refused.
    """
    _check_names(repo, branch)
    if licence is not None:
        check_licence(licence)
    for name in QUIET:  # their messages hold addresses with signatures
        logging.getLogger(name).setLevel(logging.ERROR)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    repository = Repository(repo, branch, console.print, "dataset" if training_facts(url) is None else "model")
    with tempfile.TemporaryDirectory(prefix="granary-") as scratch:
        publication = _gathered(url, repository, scratch, ledger, embeddings, licence)
        _preflight(publication)
        if dry_run:
            _print_plan(publication, repository)
            return
        _send(publication, repository, private, console)


def _gathered(
    url: str, repository: Repository, scratch: str, ledger: bool, embeddings: bool, licence: str | None
) -> Publication:
    if repository.kind == "dataset":
        return gather(url, repository.name, repository.address, scratch, ledger, embeddings, licence)
    for name, given in (("ledger", ledger), ("embeddings", embeddings)):
        if given:
            raise UserError(f"{name}: a training has none; leave --{name} out")
    with needs("train"):
        from granary.training.run.publication import gather_training

        return gather_training(url, repository.name, scratch, licence)


def _check_names(repo: str, branch: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo, wrong = "", repo
    if repo.count("/") != 1:
        raise UserError(f"repo: {repo or wrong!r} is not right; give ORG/NAME, letters, digits, '-', '_' and '.'")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", branch):
        raise UserError(f"branch: {branch!r} is not right; give letters, digits, '-', '_' and '.'")


def _preflight(publication: Publication) -> None:
    others = [*publication.beside, *publication.weights]
    _refuse(list(problems({**publication.parquet, "": others}, publication.texts, get_token())))


def _over(publication: Publication, card: str) -> Publication:
    """Return the publication with the card on the Hub merged into its own, the texts checked again."""
    merged = publication.over(card)
    _refuse(list(problems({}, merged.texts, get_token())))
    return merged


def _refuse(refusals: Sequence[str]) -> None:
    if refusals:
        raise UserError("nothing was sent:\n" + "\n".join(f"  {problem}" for problem in refusals))


def _send(publication: Publication, repository: Repository, private: bool, console: Console) -> None:
    repository.sign_in()
    theirs = repository.card()
    publication = _over(publication, theirs)
    repository.validate(publication.texts["README.md"])
    repository.create(private)
    done = send(repository, publication.name, publication.large, publication.beside)
    removed = f", {done['removed']} old files removed" if done["removed"] else ""
    if changes := difference(theirs, publication.texts["README.md"]) if theirs else []:
        gone = sum(line.startswith("-") for line in changes[2:])
        console.print(f"README.md was merged with the card on the Hub; lines of that card replaced: {gone}")
    console.print(
        f"{done['sent']} files sent ({written_size(done['bytes'])}), {done['kept']} were there already{removed}"
    )
    print(repository.address)


def _print_plan(publication: Publication, repository: Repository) -> None:
    """Print every file that would be sent; the Hub is asked which it has, and need not be in reach."""
    held, note, theirs = {}, "", ""
    try:
        if repository.info() is None:
            note = f"{repository.address} would be created"
        else:
            held, theirs = repository.files(), repository.card()
    except UserError as error:
        note = f"The Hub could not be asked which files it holds ({error})"
    if held:
        repository.check_free(held, publication.name)
    publication = _over(publication, theirs)
    uploads = publication.large + publication.beside
    missing = [upload for upload in uploads if not upload.is_at(held.get(upload.path))]
    for upload in missing:
        print(f"{written_size(upload.size):>12}  {upload.path}")
    total = written_size(sum(upload.size for upload in missing))
    print(
        f"{len(missing)} files, {total}, would be sent to {repository.address}; {len(uploads) - len(missing)} are there"
    )
    if theirs:
        print("\n".join(difference(theirs, publication.texts["README.md"])))
    if note:
        print(note)
