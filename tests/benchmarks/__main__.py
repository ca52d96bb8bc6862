"""Run every benchmark: `make bench`. Each prints ratios against a named reference in the same run."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    *("startup", "download", "join", "cell_join", "copies", "pipeline", "workers", "world", "guidance", "pack"),
    *("loader", "ijepa", "dinov2", "resnet"),
)

if __name__ == "__main__":
    for module in MODULES:
        print(f"\n== {module}", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{module}"], check=True)
