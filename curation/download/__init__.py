"""Files behind http(s): many at a time, whole or not at all, and from no address that a list should not reach."""

from granary.curation.download.client import Downloads
from granary.curation.download.errors import DownloadError
from granary.curation.download.options import Download

__all__ = ["Download", "DownloadError", "Downloads"]
