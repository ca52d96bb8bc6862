"""What the Hub would refuse or could not show, found before the first byte is sent.

Limits: https://huggingface.co/docs/hub/storage-limits (files, folders, sizes) and the dataset viewer's 300 MB for the
row group it reads.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.hub.card import Tree, parse_card
from granary.curation.hub.licences import unknown_licence
from granary.curation.hub.secrets import columns_with_secrets
from granary.curation.hub.upload import Upload
from granary.curation.store import storage

if TYPE_CHECKING:
    from datasets import Features

T = TypeVar("T")
FOLDER_FILES, REPOSITORY_FILES = 10_000, 100_000
FILE_BYTES, GROUP_BYTES = 50_000_000_000, 300_000_000
LARGER = "larger --shards.rows, --unit_rows and --shards.max_bytes, as far as its command has them"
SMALLER = LARGER.replace("larger", "smaller")
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an AWS access key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}|\bAIza[\w-]{35}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password in an address": r"://[^/\s:@]+:[^/\s@]+@",
    "a signed address": r"[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig)=",
}


def problems(
    uploads: Mapping[str, Sequence[Upload]], texts: Mapping[str, str], token: str | None = None
) -> Iterator[str]:
    """Yield one sentence with its remedy for each thing that stands against publishing.

    Args:
        uploads: for each config its Parquet files; "" holds the files beside them.
        texts: the text files by path; README.md must be among them.
        token: of the user, which must not stand in them.
    """
    yield from _counts([upload for files in uploads.values() for upload in files])
    header, _ = parse_card(texts["README.md"])
    yield from _licence(header)
    for path, text in texts.items():
        yield from _secrets(path, text, token)
    for config, files in uploads.items():
        if config:
            yield from _parquet(config, files, _stated_features(header, config))


def _counts(uploads: Sequence[Upload]) -> Iterator[str]:
    folders = collections.Counter(upload.path.rpartition("/")[0] for upload in uploads)
    for folder, count in sorted(folders.items()):
        if count > FOLDER_FILES:
            yield (
                f"{folder}/ would hold {count:,} files and the Hub takes {FOLDER_FILES:,} in a folder; "
                f"run again with {LARGER}"
            )
    if len(uploads) > REPOSITORY_FILES:
        yield (
            f"the repository would hold {len(uploads):,} files and the Hub takes {REPOSITORY_FILES:,}; "
            f"run again with {LARGER}"
        )
    for upload in uploads:
        if upload.size >= FILE_BYTES:
            yield (
                f"{upload.path} has {upload.size / 1e9:,.1f} GB and the Hub takes files under {FILE_BYTES // 10**9} "
                f"GB; run again with {SMALLER}"
            )


def _licence(header: Tree) -> Iterator[str]:
    licence = header.get("license")
    if licence in (None, "", "unknown", []):
        yield (
            "the card states no licence; give --licence, such as cc-by-4.0 or other, "
            "or write `license:` into the header of the card (dataset/README.md of a run)"
        )
    else:
        reasons = (unknown_licence(str(one)) for one in _listed(licence))
        yield from (f"the licence {reason}" for reason in reasons if reason)


def _listed(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


def _secrets(path: str, text: str, token: str | None) -> Iterator[str]:
    secrets = [what for what, pattern in SECRETS.items() if re.search(pattern, text)]
    if token and token in text:
        secrets.insert(0, "your Hub token")
    for what in secrets[:1]:
        yield f"{path} holds what looks like {what}; take it out of the card or the recipe"


def _stated_features(header: Tree, config: str) -> Features | None:
    """Return the features a card's header states for a config; None where it states none."""
    from datasets import Features

    infos = _listed(header.get("dataset_info") or {})
    stated = [info for info in infos if info.get("config_name", "default") == config and "features" in info]
    return Features._from_yaml_list(stated[0]["features"]) if stated else None


def _parquet(config: str, files: Sequence[Upload], stated: Features | None) -> Iterator[str]:
    from datasets import Features

    again = "run the pipeline again, which writes it anew"
    first: pa.Schema | None = None
    for upload in files:
        if upload.written is not None and upload.sha256 != upload.written:
            yield f"{upload.path} is not what the run wrote: `granary check RUN --repair` removes it, then {again}"
            continue
        try:
            with storage.open_read(upload.url) as file:
                parquet = pq.ParquetFile(file)
                schema, metadata = parquet.schema_arrow, parquet.metadata
                secrets = dict(columns_with_secrets(file))
        except (OSError, pa.ArrowInvalid) as error:
            yield f"{upload.path} is not a readable Parquet file ({type(error).__name__}); delete it and {again}"
            continue
        groups = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        if max(groups, default=0) > GROUP_BYTES:
            yield (
                f"{upload.path} has a row group of {max(groups) / 1e6:,.0f} MB and the Hub's viewer reads at most "
                f"{GROUP_BYTES // 10**6} MB; run again with a smaller --shards.row_group"
            )
        for column, count in secrets.items():
            yield (
                f"{upload.path}: {count:,} values of column {column} are addresses with a password, a signature or a "
                f"folder of this machine; {again}"
            )
        if first is None:
            first = schema
            yield from _columns(upload.path, schema)
        elif not schema.equals(first, check_metadata=True):
            yield f"{upload.path} has another schema than {files[0].path}; delete it and {again}"
    if first is None:
        yield f"{config}: there is no Parquet file to send; {again}"
    elif stated != Features.from_arrow_schema(first):
        yield f"the card states other features for {config} than its Parquet files have; {again}"


def _columns(path: str, schema: pa.Schema) -> Iterator[str]:
    from datasets import Features, Image

    features = Features.from_arrow_schema(schema)
    for field in schema:
        if _holds_null(field.type):
            yield f"{path}: column {field.name} has the type null; write it anew with a type, such as string"
        image = pa.types.is_struct(field.type) and {"bytes", "path"} == {inner.name for inner in field.type}
        if image and not isinstance(features[field.name], Image):
            yield (
                f"{path}: column {field.name} holds images that are not typed as Image; "
                "write it with the features of granary.curation.store.schema"
            )


def _holds_null(kind: pa.DataType) -> bool:
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return pa.types.is_null(kind) or any(map(_holds_null, inner))
