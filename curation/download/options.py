"""How files are fetched over HTTP: limits, patience, manners."""

from __future__ import annotations

from pydantic import Field

from granary.curation.options import Options


class Download(Options, frozen=True):
    """How addresses of lists are fetched over http and https."""

    connections: int = Field(32, ge=1, description="addresses that one worker fetches at a time")
    per_host: int = Field(8, ge=1, description="of these from one host")
    connect_timeout: float = Field(10, gt=0, description="seconds until a connection must stand")
    read_timeout: float = Field(20, gt=0, description="seconds without a byte until a download is given up")
    total_timeout: float = Field(120, gt=0, description="seconds that one download may take")
    retries: int = Field(2, ge=0, description="further tries after a failure that can pass (5xx, 429, timeout, reset)")
    backoff: float = Field(0.5, ge=0, description="seconds before the first of them, twice as many before the next")
    longest_wait: float = Field(30, ge=0, description="longest Retry-After, in seconds, that is waited for in this run")
    max_bytes: int | None = Field(None, ge=1, description="larger files are not fetched; default decode.max_bytes")
    redirects: int = Field(10, ge=0, description="redirects that are followed")
    user_agent: str = Field(
        "granary", min_length=1, pattern=r"^[\x20-\x7e]+$", description="what servers are told of who asks"
    )
    refused_tags: tuple[str, ...] = Field(
        ("noai", "noimageai"),
        description="words of an X-Robots-Tag header that keep an image out; [] takes it whatever the header says",
    )
