"""What of an address may be stored and shown: no password, no signature, no folder of this machine.

The full address stays where it is fetched from: the list, the recipe of the run, the work unit that reads it.
"""

from __future__ import annotations

import json
import posixpath
import re
from urllib.parse import unquote_plus

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>\\^`{|}]*")
JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
# Names of parameters that sign a request or prove who asks: AWS, Google, Azure, Alibaba, Tencent, Akamai, CloudFront,
# and what APIs call their keys.
SECRET = re.compile(
    r"(x-(amz|goog|oss|cos|ms|obs)-.*)|q-.*|hdn(ts|ea)|expires|policy|key-pair-id|oh|oe|jwt|bearer|sas|pwd|sig"
    r"|(.*[-_.])?(key|auth|sign)|.*(token|secret|passw(or)?d|signature|credential|apikey|accesskey|accessid|hmac).*"
    r"|authorization|auth_?key|session_?id",
    re.IGNORECASE,
)
# Short names that mean nothing alone, dropped beside the one that tells what they are: Azure's SAS, Discord's.
COMPANIONS = {
    "sig": frozenset(
        ["sv", "ss", "srt", "sr", "st", "se", "sp", "sip", "spr", "sks", "skt", "ske", "skv", "skoid", "sktid"]
    ),
    "hm": frozenset(("hm", "ex", "is")),
}
LOCAL = ("file", "local")


def stored(address: str) -> str:
    """Return what is kept of an address or path, the same for all that lead to the same file.

    >>> stored("https://me:pw@host/a.jpg?width=9&X-Amz-Signature=c0ffee")
    'https://host/a.jpg?width=9'
    >>> stored("/home/me/pictures/a.jpg"), stored("file:///home/me/a.jpg"), stored("sub/a.jpg")
    ('a.jpg', 'a.jpg', 'sub/a.jpg')
    """
    if "::" in address and not address.startswith(("http://", "https://")):
        return "::".join(map(stored, address.split("::")))
    scheme, mark, rest = address.partition("://")
    if not mark:
        return posixpath.basename(address.rstrip("/")) if posixpath.isabs(address) else address
    if scheme.lower() in LOCAL:
        return posixpath.basename(rest.rstrip("/"))
    authority, path, query, fragment = _split(rest)
    kept = authority.rpartition("@")[2] + path + _plain("?", query) + _plain("#", fragment)
    return f"{scheme}://{kept}"


def _split(rest: str) -> tuple[str, str, str, str]:
    """Return authority, path, query and fragment of what follows ://."""
    before, _, fragment = rest.partition("#")
    before, _, query = before.partition("?")
    authority, slash, path = before.partition("/")
    return authority, slash + path, query, fragment


def _plain(mark: str, query: str) -> str:
    """Return a query without its secret parameters; "" where nothing is left."""
    parameters = re.split("[&;]", query) if query else []
    names = [unquote_plus(parameter.partition("=")[0]).lower() for parameter in parameters]
    companions = {short for name in names for short in COMPANIONS.get(name, ())}
    kept = [
        parameter
        for parameter, name in zip(parameters, names, strict=True)
        if name not in companions and not ("=" in parameter and SECRET.fullmatch(name))
    ]
    return mark + "&".join(kept) if kept else ""


def without_secrets(text: str) -> str:
    """Return a text with every address in it as it is stored."""
    return URL.sub(lambda match: stored(match[0]), text) if "://" in text else text


def json_without_secrets(text: str) -> str:
    """Return JSON with every address in its texts as it is stored; what holds none stays as it is written.

    Text by text, not as a tree: it may be nested deeper than the stack, or be no JSON at all.
    """
    return without_secrets(JSON_TEXT.sub(_clean_literal, text)) if "://" in text or ":\\/\\/" in text else text


def _clean_literal(match: re.Match[str]) -> str:
    try:
        value = json.loads(match[0])
    except ValueError:
        return match[0]
    clean = without_secrets(value)
    return match[0] if clean == value else json.dumps(clean, ensure_ascii=False)
