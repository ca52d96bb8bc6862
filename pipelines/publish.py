"""Publish a run to the Hugging Face Hub: gather, check, send."""

from __future__ import annotations

import logging
import re
import tempfile

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.hub.card import written_size
from granary.curation.hub.client import Repository, send
from granary.curation.hub.preflight import problems
from granary.curation.hub.publication import Publication, gather

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
) -> None:
    """Publish a finished run as a dataset repository; killed, the same call goes on where it stopped.

    Args:
        url: of the run directory.
        repo: ORG/NAME.
        private: create the repository as private.
        dry_run: check everything and print what would be sent.
        branch: to write to; created where it is missing.
        ledger: publish the ledger too, as a config of its own.
        embeddings: publish the copy descriptors of the kept images too, as a config of their own.

    Raises:
        UserError: the run cannot be published, or the Hub refused.
    """
    _check_names(repo, branch)
    for name in QUIET:  # their messages hold addresses with signatures
        logging.getLogger(name).setLevel(logging.ERROR)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    repository = Repository(repo, branch, console.print)
    with tempfile.TemporaryDirectory(prefix="granary-") as scratch:
        publication = gather(url, repo, repository.address, scratch, ledger, embeddings)
        _preflight(publication)
        if dry_run:
            _print_plan(publication, repository)
            return
        _send(publication, repository, private, console)


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
    uploads = {**publication.parquet, "": publication.beside}
    refusals = list(problems(uploads, publication.texts, get_token()))
    if refusals:
        raise UserError("nothing was sent:\n" + "\n".join(f"  {problem}" for problem in refusals))


def _send(publication: Publication, repository: Repository, private: bool, console: Console) -> None:
    repository.sign_in()
    repository.validate(publication.texts["README.md"])
    repository.create(private)
    shards = [upload for files in publication.parquet.values() for upload in files]
    done = send(repository, publication.name, shards, publication.beside)
    removed = f", {done['removed']} old files removed" if done["removed"] else ""
    console.print(
        f"{done['sent']} files sent ({written_size(done['bytes'])}), {done['kept']} were there already{removed}"
    )
    print(repository.address)


def _print_plan(publication: Publication, repository: Repository) -> None:
    """Print every file that would be sent; the Hub is asked which it has, and need not be in reach."""
    uploads = [upload for files in publication.parquet.values() for upload in files] + publication.beside
    held, note = {}, ""
    try:
        if repository.info() is None:
            note = f"{repository.address} would be created"
        else:
            held = repository.files()
    except UserError as error:
        note = f"The Hub could not be asked which files it holds ({error})"
    if held:
        repository.check_free(held, publication.name)
    missing = [upload for upload in uploads if not upload.is_at(held.get(upload.path))]
    for upload in missing:
        print(f"{written_size(upload.size):>12}  {upload.path}")
    total = written_size(sum(upload.size for upload in missing))
    print(
        f"{len(missing)} files, {total}, would be sent to {repository.address}; {len(uploads) - len(missing)} are there"
    )
    if note:
        print(note)
