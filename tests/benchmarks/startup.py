"""What a command costs before it works: `python -m tests.benchmarks.startup [CHECKOUT]`.

Processor seconds, the median of several processes, of `import granary`, of `--help` of every command, and of a second
`granary curate` of a finished run. The yardstick of the same rounds is `import apache_beam, torch, sklearn.cluster`,
which a command of version 0.1 paid before anything else. CHECKOUT is a folder with version 0.1 in it: its own repeat of
the same run is then measured as well, in turn with ours.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from granary.pipelines.command import COMMANDS

ROUNDS = 5
PICTURES = 500
EARLIER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pipelines.command import main; sys.exit(main())"


def processor_seconds(command: list[str]) -> float:
    """Return user and system seconds of a process and its children; it must end well."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def in_turn(commands: dict[str, list[str]]) -> dict[str, float]:
    """Return the median seconds of each command over rounds in which all take turns, after one to warm up."""
    rounds = [{name: processor_seconds(command) for name, command in commands.items()} for _ in range(ROUNDS + 1)]
    return {name: statistics.median(seconds[name] for seconds in rounds[1:]) for name in commands}


def write_pool(folder: pathlib.Path) -> None:
    """Write small pictures of noise."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (PICTURES, 48, 48, 3), dtype=np.uint8)
    for number, array in enumerate(pixels):
        Image.fromarray(array).save(folder / f"{number}.png")


def commands(folder: pathlib.Path, checkout: str | None) -> dict[str, list[str]]:
    """Return what is measured, by name; both finished runs are made here."""
    python, arguments = sys.executable, ["curate", "--pool", str(folder / "pool"), "--out"]
    measured = {
        "yardstick": [python, "-c", "import apache_beam, torch, sklearn.cluster"],
        "import granary": [python, "-c", "import granary"],
        **{f"{name} --help": [python, "-m", "granary", name, "--help"] for name in COMMANDS},
        "curate again": [python, "-m", "granary", *arguments, str(folder / "run")],
    }
    processor_seconds(measured["curate again"])
    if checkout:
        measured["curate again, 0.1"] = [python, "-c", EARLIER, checkout, *arguments, str(folder / "earlier")]
        processor_seconds(measured["curate again, 0.1"])
    return measured


def main(checkout: str | None) -> None:
    """Print seconds and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        write_pool(pathlib.Path(folder, "pool"))
        seconds = in_turn(commands(pathlib.Path(folder), checkout))
    table = Table("", "processor s", "of the yardstick", box=None)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / seconds['yardstick']:.2f}")
    Console().print(table)
    if checkout:
        print(f"curate again, of 0.1's: {seconds['curate again'] / seconds['curate again, 0.1']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
