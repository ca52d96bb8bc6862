"""The dataset card: the YAML header `datasets` and the Hub read, and what a reader needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from curation.recipe import CurateRecipe


def write_card(recipe: CurateRecipe, features: Any, samples: int, size: int, flow: Sequence[Mapping[str, Any]]) -> str:
    """Return README.md of the dataset folder.

    Args:
        recipe: of the run.
        features: the `datasets.Features` the shards were written with.
        samples: number of samples.
        size: of the shards in bytes.
        flow: counts per stage.
    """
    header = {
        "pretty_name": recipe.name,
        "license": recipe.licence,
        "size_categories": [_size_category(samples)],
        "task_categories": ["image-feature-extraction"],
        "tags": ["granary", "dataset-curation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "dataset_info": {
            "features": features._to_yaml_list(),
            "dataset_size": size,
            "download_size": size,
            "splits": [{"name": "train", "num_bytes": size, "num_examples": samples}],
        },
    }
    rows = [
        f"| {row['stage']} | {row['in']:,} | {row['kept']:,} | {row['dropped']:,} | {row['dead']:,} |" for row in flow
    ]
    table = "\n".join(["| stage | in | kept | dropped | unreadable |", "|---|---:|---:|---:|---:|", *rows])
    thresholds = f"near duplicates above {recipe.dedup.threshold}, leaks above {recipe.leaks.threshold}"
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---

# {recipe.name}

{samples:,} images, curated from a larger pool: exact and near duplicates removed, images that resemble the reference
sets removed, and where there are seed sets, images retrieved that resemble them. Every image is the original file.

## How it came about

{table}

Cosine similarity of `{recipe.encoder.copy_}`: {thresholds}. Retrieval by `{recipe.encoder.retrieval}`.
Method: DINOv2 (arXiv 2304.07193), section 3.

## Columns

`id`: first 32 hex characters of the SHA-256 of the file. `image`: the original bytes. `width`, `height`: upright, in
pixels. `label`, `captions`, `metadata`: as the source had them. `source`: its name and the uri in it. `seed_ids`,
`similarities`: the seeds that retrieved the image, best first.

## Load it

```python
from datasets import load_dataset

dataset = load_dataset("PATH_OR_ID", split="train")
```
"""


def _size_category(samples: int) -> str:
    bounds = [
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
        (10**8, "10M<n<100M"),
        (10**9, "100M<n<1B"),
    ]
    return next((name for bound, name in bounds if samples < bound), "n>1B")
