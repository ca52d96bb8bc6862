"""The identifiers of licences that the Hub knows, https://huggingface.co/docs/hub/repositories-licenses."""

from __future__ import annotations

import difflib
import re

from granary.curation.errors import UserError

NAMES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
    ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1
    ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
LICENCES = frozenset(NAMES.split())


def unknown_licence(licence: str) -> str:
    """Return why a licence is refused and what would be right; "" for one that the Hub knows."""
    if licence in LICENCES:
        return ""
    alike = re.sub(r"[\s_]+", "-", licence.strip().lower())
    close = difflib.get_close_matches(alike, sorted(LICENCES), 1, 0.7)
    hint = f"did you mean {close[0]}?" if close else "give one of its identifiers, such as cc-by-4.0 or mit, or other"
    return f"{licence!r} is not an identifier that the Hub knows; {hint}"


def check_licence(licence: str) -> None:
    """Raise UserError for a licence that the Hub does not know."""
    if reason := unknown_licence(licence):
        raise UserError(f"licence: {reason}")
