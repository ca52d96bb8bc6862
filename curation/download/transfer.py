"""One file over HTTP: ask, check the answer, read the whole body."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from granary.curation.download import guard, headers
from granary.curation.download.errors import DownloadError
from granary.curation.download.options import Download

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

CHUNK = 1 << 16


def open_session(options: Download, private: bool) -> ClientSession:
    """Return a session that connects to public addresses alone, unless `private`; call it inside the event loop."""
    import aiohttp

    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=300, socket_factory=None if private else guard.public_socket
    )
    limits = aiohttp.ClientTimeout(
        total=None, sock_connect=options.connect_timeout, sock_read=options.read_timeout, ceil_threshold=60
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=limits,
        headers={"User-Agent": options.user_agent, "Accept": "image/*,*/*;q=0.8"},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def transfer(
    session: ClientSession, address: str, options: Download, max_bytes: int, arrived: Callable[[int], None]
) -> bytes:
    """Return the whole body of an address.

    Args:
        session: of `open_session`.
        address: http or https.
        options: how.
        max_bytes: more are not read.
        arrived: is told how many bytes came; what it raises ends the download.

    Raises:
        DownloadError: there is no such file, or not all of it came.
    """
    import aiohttp

    try:
        async with (
            asyncio.timeout(options.total_timeout),
            session.get(written(address), max_redirects=options.redirects) as answer,
        ):
            check_answer(answer, options, max_bytes)
            return checked_body(answer, await read_body(answer, max_bytes, arrived))
    except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
        raise reason(error, options) from error


async def read_body(answer: ClientResponse, max_bytes: int, arrived: Callable[[int], None]) -> bytes:
    """Return the bytes of an answer as they are unpacked; raises DownloadError as soon as they are too many."""
    body = bytearray()
    async for part in answer.content.iter_chunked(CHUNK):
        body += part
        check_size(len(body), max_bytes)
        arrived(len(part))
    return bytes(body)


def written(address: str) -> URL:
    """Return an address as it goes on the wire: one in plain ASCII stays as it is, so that its signature holds."""
    from yarl import URL

    return URL(address, encoded=address.isascii() and address.isprintable() and " " not in address)


def check_answer(answer: ClientResponse, options: Download, max_bytes: int) -> None:
    """Raise DownloadError where status, size or tags of an answer keep its body out."""
    if answer.status != 200:
        wait = headers.seconds_to_wait(answer.headers.get("Retry-After"))
        phrase = "".join(letter for letter in (answer.reason or "") if letter.isprintable())[:100]
        raise DownloadError(f"HTTP {answer.status}", f"the server answers {answer.status} {phrase}".rstrip(), wait)
    tags = headers.robots_tags(answer.headers.getall("X-Robots-Tag", []), options.user_agent)
    refused = sorted(tags & {tag.lower() for tag in options.refused_tags})
    if refused:
        raise DownloadError("RobotsTag", f"its X-Robots-Tag header says {', '.join(refused)}")
    check_size(answer.content_length or 0, max_bytes)


def check_size(size: int, max_bytes: int) -> None:
    """Raise DownloadError above the limit."""
    if size > max_bytes:
        raise DownloadError("TooManyBytes", f"more than the limit of {max_bytes} bytes")


def checked_body(answer: ClientResponse, body: bytes) -> bytes:
    """Return a body that came to its end; raises DownloadError where nothing but its own format tells that it did not.

    A body with a length, or in chunks, is checked as it is read. One that ends with the connection may have been cut;
    what granary's decoder would not notice, because it looks at the first frame alone, is looked at here.
    """
    ends_with_connection = answer.content_length is None and not answer.headers.get("Transfer-Encoding")
    if ends_with_connection and is_cut(body):
        raise DownloadError("CutShort", "the connection ended before the picture did")
    return body


def is_cut(body: bytes) -> bool:
    """Say whether a GIF, WebP or PNG lacks its end."""
    if body.startswith((b"GIF87a", b"GIF89a")):
        return not body.rstrip(b"\0").endswith(b";")
    if body.startswith(b"RIFF"):
        return len(body) < 8 + int.from_bytes(body[4:8], "little")
    return body.startswith(b"\x89PNG") and b"IEND" not in body


def reason(error: Exception, options: Download) -> DownloadError:
    """Return an error of the HTTP client as ours, in words that name no address."""
    import aiohttp

    if isinstance(error, DownloadError):
        return error
    if isinstance(error, TimeoutError):
        return DownloadError("TimeoutError", _which_timeout(error, options))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return DownloadError("UnknownHost", "the name of the host leads nowhere")
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, guard.RefusedPeer):
        return guard.refused()
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError | ssl.CertificateError):
        return DownloadError("TLSError", "no secure connection: the certificate or the protocol is not right")
    if isinstance(error, aiohttp.ClientPayloadError | asyncio.IncompleteReadError):
        return DownloadError("CutShort", "the connection ended before the whole body came")
    if isinstance(error, aiohttp.TooManyRedirects):
        return DownloadError("TooManyRedirects", f"more than {options.redirects} redirects")
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return DownloadError("BadAddress", "it is, or leads to, no address of http or https")
    if isinstance(error, OSError | aiohttp.ClientConnectionError):
        return DownloadError("ConnectionError", "the connection was refused, or broke off")
    if isinstance(error, aiohttp.ClientError):
        return DownloadError("BadAnswer", "what came is no answer of HTTP")
    return DownloadError("BadAddress", "it is no address of http or https")


def _which_timeout(error: TimeoutError, options: Download) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection within {options.connect_timeout:g} s"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"nothing came for {options.read_timeout:g} s"
    return f"not whole within {options.total_timeout:g} s"
