"""Send files to a repository of the Hugging Face Hub, of a dataset or a model, and go on after a kill.

What is to be sent is decided by asking the Hub which paths it holds with which SHA-256: there is no local state that
could lie. Files land in batches of commits. `granary.json` says in the first of them that the repository is not
complete, and in the last one that it is, with every file and its SHA-256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    ModelCard,
    constants,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from granary.curation.errors import UserError
from granary.curation.hub.upload import Upload, batches

T = TypeVar("T")
Operation = CommitOperationAdd | CommitOperationDelete
MANIFEST = "granary.json"
HARMLESS = (".gitattributes", "README.md")  # what a repository holds that was only just created
FOLDERS = ("data", "pairs", "quads", "videos", "groups", "ledger", "embeddings")  # of all configs of all kinds of run
OURS = re.compile(rf"({'|'.join(FOLDERS)})/\w+-\d+-of-\d+\.parquet|contact-sheet\.jpg|checkpoints/step-\d+/\w+\.\w+")
CARDS: dict[str, type[DatasetCard | ModelCard]] = {"dataset": DatasetCard, "model": ModelCard}
ATTEMPTS, PAUSE, LONGEST_PAUSE = 6, 1.0, 3600.0
PASSING = (408, 429, 500, 502, 503, 504)


@dataclasses.dataclass
class Repository:
    """A repository on the Hub.

    Args:
        name: ORG/NAME.
        branch: to write to.
        tell: shows a line to the user.
        kind: what it holds.
    """

    name: str
    branch: str = "main"
    tell: Callable[[str], None] = lambda line: None
    kind: Literal["dataset", "model"] = "dataset"

    def __post_init__(self) -> None:
        self.api = HfApi()
        if "HF_HUB_DISABLE_XET" not in os.environ:
            # Over HTTP the Hub tells which files it has whole, committed or not, and pieces of them fill no memory. Xet
            # does neither: it took 950 MB for 800 MB of shards. HF_HUB_DISABLE_XET=0 asks for it.
            constants.HF_HUB_DISABLE_XET = True

    @property
    def address(self) -> str:
        """The web address of the repository."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def ask(self, action: Callable[[], T]) -> T:
        """Call the Hub, again after a pause when it is busy or out of reach.

        Raises:
            UserError: it refused, or was still busy at the last attempt; the message never holds the token.
        """
        for attempt in range(ATTEMPTS):
            try:
                return action()
            except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
                cause = _cause(error)
                if isinstance(cause, RuntimeError) or (_status(cause) or PASSING[0]) not in PASSING:
                    raise self._sentence(cause) from None
                if attempt == ATTEMPTS - 1:
                    raise self._sentence(cause) from None
                pause = _pause(cause, attempt)
                self.tell(f"the Hub is busy or out of reach; trying again in {pause:.0f} s")
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _sentence(self, error: BaseException) -> UserError:
        status = _status(error)
        owner = self.name.split("/")[0]
        if isinstance(error, RepositoryNotFoundError):
            text = (
                f"repo: there is no {self.kind} {self.name} on the Hub that your token may see; "
                "check the name, and that the token may write to it"
            )
        elif status == 401:
            text = "token: the Hub refuses your token; put a valid one into HF_TOKEN, or run `hf auth login`"
        elif status in (402, 403):
            text = f"token: your token may not write to {owner}; use one with write permission there, or another --repo"
        elif status == 409:
            text = f"repo: {self.name} was changed by someone else just now; run the same command again"
        elif status is None or status in PASSING:
            what = f"answered {status}" if status else f"is out of reach ({type(error).__name__})"
            text = (
                f"the Hub {what} {ATTEMPTS} times; run the same command again later, finished files are not sent again"
            )
        else:
            text = (
                f"the Hub answered {status}: {redacted(str(getattr(error, 'server_message', '') or 'no reason given'))}"
            )
        return UserError(text)

    def sign_in(self) -> None:
        """Check that there is a token and that the Hub takes it; raises UserError."""
        if not get_token():
            raise UserError("token: there is none; put one with write permission into HF_TOKEN, or run `hf auth login`")
        self.ask(self.api.whoami)

    def validate(self, card: str) -> None:
        """Let the Hub check the header of a card; raises UserError."""
        try:
            self.ask(lambda: CARDS[self.kind](card).validate(repo_type=self.kind))
        except ValueError as error:
            reason = redacted(" ".join(str(error).split()))
            raise UserError(f"card: the Hub refuses the header of README.md: {reason}; correct it there") from None

    def info(self) -> DatasetInfo | ModelInfo | None:
        """Return what the Hub says of the repository; None when it has none of that name."""
        ask = self.api.dataset_info if self.kind == "dataset" else self.api.model_info

        def look() -> DatasetInfo | ModelInfo | None:
            try:
                return ask(self.name)
            except RepositoryNotFoundError:
                return None

        return self.ask(look)

    def create(self, private: bool) -> None:
        """Create the repository where it is missing, and the branch.

        Raises:
            UserError: it cannot be created, or is there and public though `private` is asked.
        """
        info = self.info()
        if info is None:
            self.ask(lambda: self._create(private))
        elif private and not info.private:
            raise UserError(
                f"repo: {self.name} is there already and is public; make it private on the Hub, or leave --private out"
            )
        if self.branch != "main":
            self.ask(lambda: self.api.create_branch(self.name, repo_type=self.kind, branch=self.branch, exist_ok=True))

    def _create(self, private: bool) -> None:
        try:
            self.api.create_repo(self.name, repo_type=self.kind, private=private or None, exist_ok=True)
        except HfHubHTTPError as error:
            if error.response.status_code in (400, 404):
                raise UserError(
                    f"repo: the Hub cannot create {self.name}; check that {self.name.split('/')[0]} is your user name "
                    "or an organisation of yours"
                ) from None
            raise

    def files(self) -> dict[str, RepoFile]:
        """Return the `RepoFile` of every path on the branch; none when there is no such branch yet."""

        def listed() -> dict[str, RepoFile]:
            try:
                tree = self.api.list_repo_tree(
                    self.name, repo_type=self.kind, revision=self.branch, recursive=True, expand=False
                )
                return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            except RevisionNotFoundError:
                return {}

        return self.ask(listed)

    def check_free(self, files: Mapping[str, RepoFile], name: str) -> None:
        """Raise UserError when the repository holds anything but this publication, whole or half sent."""
        others = [path for path in files if path not in HARMLESS]
        if not others:
            return
        if MANIFEST not in files:
            raise UserError(
                f"repo: {self.name} holds {len(others):,} files that granary did not put there, such as {others[0]}; "
                "give another --repo, or another --branch"
            )
        held = self.manifest().get("name")
        if held != name:
            raise UserError(f"repo: {self.name} holds the {self.kind} {held!r}, not {name!r}; give another --repo")

    def manifest(self) -> dict[str, object]:
        """Return what granary.json of the branch says; {} when it says nothing."""
        try:
            return dict(json.loads(self.ask(lambda: self._fetch(MANIFEST, self.branch))))
        except ValueError:
            return {}

    def card(self) -> str:
        """Return README.md of the branch, of main where there is no such branch yet; "" where there is none.

        Raises:
            UserError: the Hub refused, or it is no text.
        """

        def fetch() -> bytes:
            for branch in dict.fromkeys((self.branch, "main")):
                try:
                    return self._fetch("README.md", branch)
                except RevisionNotFoundError:
                    continue
                except (RepositoryNotFoundError, RemoteEntryNotFoundError):
                    break
            return b""

        try:
            return self.ask(fetch).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"card: README.md on the Hub is no text in UTF-8 ({error}); correct it there") from None

    def _fetch(self, path: str, branch: str) -> bytes:
        """Return the bytes of a small file."""
        url = hf_hub_url(self.name, path, repo_type=self.kind, revision=branch)
        response = http_backoff("GET", url, headers=build_hf_headers())
        hf_raise_for_status(response)
        return bytes(response.content)

    def commit(self, title: str, uploads: Iterable[Upload], removed: Iterable[str] = ()) -> None:
        """Add and remove files in one commit; what the Hub already received is not sent again."""
        uploads, removed = list(uploads), list(removed)

        def send() -> None:
            with contextlib.ExitStack() as stack:
                operations: list[Operation] = [stack.enter_context(upload.addition()) for upload in uploads]
                operations += [CommitOperationDelete(path, is_folder=False) for path in removed]
                call = functools.partial(
                    self.api.create_commit,
                    self.name,
                    operations,
                    commit_message=title,
                    repo_type=self.kind,
                    revision=self.branch,
                )
                try:
                    call()
                except (OSError, RuntimeError) as error:
                    if not _of_xet(error):
                        raise
                    self.tell(f"sending over HTTP instead of Xet, which failed: {redacted(str(error))}")
                    constants.HF_HUB_DISABLE_XET = True  # read at each upload; hf_xet has tried again by itself
                    call()

        self.ask(send)


def send(repository: Repository, name: str, large: Sequence[Upload], beside: Sequence[Upload]) -> dict[str, int]:
    """Make the branch hold these files and granary.json, no other shard or checkpoint; what is there is not sent.

    Args:
        repository: created, and free for this dataset or model.
        name: of the dataset or model.
        large: shards, or files of weights, sent in batches.
        beside: the small files, sent with the commit that marks completion.

    Returns:
        sent, bytes: files and bytes that were not on the Hub; kept: files that were; removed: files taken away.
    """
    files = repository.files()
    repository.check_free(files, name)
    missing = [upload for upload in large if not upload.is_at(files.get(upload.path))]
    begun = [_manifest(name, None)]
    for number, batch in enumerate(work := list(batches(missing)), 1):
        size = sum(upload.size for upload in batch)
        repository.commit(f"Add {name}, part {number} of {len(work)}", [*begun, *batch])
        repository.tell(f"commit {number} of {len(work)}: {len(batch)} files, {size / 1e6:,.1f} MB")
        begun = []
    last = [*beside, _manifest(name, [*large, *beside])]
    listed = {upload.path for upload in (*large, *last)}
    removed = sorted(path for path in files if path not in listed and OURS.fullmatch(path))
    changed = last if missing else [upload for upload in last if not upload.is_at(files.get(upload.path))]
    if changed or removed:
        what = "shards" if repository.kind == "dataset" else "files of weights"
        repository.commit(f"Complete {name}: {len(large)} {what}", changed, removed)
    return {
        "sent": len(missing),
        "bytes": sum(upload.size for upload in missing),
        "kept": len(large) - len(missing),
        "removed": len(removed),
    }


def _manifest(name: str, files: Sequence[Upload] | None) -> Upload:
    """Return granary.json: without files, the repository is not complete yet."""
    listed = {upload.path: {"size": upload.size, "sha256": upload.sha256} for upload in files or ()}
    data = json.dumps({"name": name, "complete": files is not None, "files": listed}, indent=1).encode()
    return Upload(MANIFEST, len(data), data=data)


def redacted(text: str) -> str:
    """Return a text of the Hub without tokens and without the signatures of addresses."""
    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"hf_\w+|(?<=[?&])(\w|-)*[Ss]ig(nature)?=[^&\s]*", "***", text)[:300]


def _of_xet(error: OSError | RuntimeError) -> bool:
    """Say whether Xet raised an error: it raises Python's ordinary classes, with a text, no errno and no cause."""
    ordinary = isinstance(error, HTTPError) or error.__cause__ is not None or getattr(error, "errno", None) is not None
    return not ordinary and not constants.HF_HUB_DISABLE_XET


def _cause(error: BaseException) -> BaseException:
    """Return the HTTP error under the RuntimeError that the upload of a file raises."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _pause(error: BaseException, attempt: int) -> float:
    """Return the seconds to wait: what Retry-After says (seconds or a date), else twice as long each time."""
    retry_after = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    if retry_after.isdigit():
        return min(float(retry_after), LONGEST_PAUSE)
    with contextlib.suppress(ValueError, TypeError):
        return min(max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()), LONGEST_PAUSE)
    return PAUSE * 2.0**attempt
