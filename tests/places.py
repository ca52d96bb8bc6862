"""Where the tests find the project and what lies beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared" / "data"  # real pictures and captions, for tests only; they skip where it is absent
