"""The command line: `granary demo | curate | explain | report | publish`, each with `--help`.

A recipe's fields are options: `--dedup.threshold 0.9`. What follows `--` goes to Beam.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from curation.errors import UserError

if TYPE_CHECKING:
    from pipelines.units import Engine

COMMANDS = {
    "demo": "make a small pool with planted copies, leaks and broken files, curate it and check the result",
    "curate": "curate a pool of images: deduplicate, remove leaks, retrieve what resembles seeds",
    "explain": "tell the story of one image of a run",
    "report": "write the report of a run again",
    "publish": "publish the dataset of a run on the Hugging Face Hub",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 the run failed, 2 a mistake in the call, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(levelname)s %(message)s")
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    handler = HANDLERS.get(words[0])
    if handler is None:
        print(
            f"granary: there is no command {words[0]!r}; the commands are {', '.join(HANDLERS)}",
            file=sys.stderr,
        )
        return 2
    try:
        return handler(words[1:])
    except UserError as error:
        if debug:
            logging.getLogger(__name__).exception("the run stopped")
        print(f"granary: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("granary: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _overview() -> str:
    lines = [f"  {name:<9}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: granary COMMAND ...", "", *lines, "", "granary COMMAND --help tells more."])


def _split_beam(words: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(words)
    return (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])


def _engine(workers: int, runner: str | None, beam: list[str]) -> Engine:
    from pipelines.profiles import load_profile
    from pipelines.units import Engine

    if workers < 0:
        raise UserError(f"workers: {workers} is not right: give 1 or more, or 0 for one per core")
    return Engine([*(load_profile(runner) if runner else []), *beam], workers)


def _curate(words: list[str]) -> int:
    words, beam = _split_beam(words)
    parser = argparse.ArgumentParser("granary curate", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--runner")
    parser.add_argument("-h", "--help", action="store_true")
    known, overrides = _parse(parser, words)
    if known.help:
        print(_curate_help())
        return 0
    from curation.recipe import CurateRecipe
    from pipelines.recipe import load_recipe

    recipe = load_recipe(CurateRecipe, known.config, overrides)
    engine = _engine(known.workers, known.runner, beam)
    quiet_libraries()
    from pipelines.runs import curate

    curate(recipe, engine)
    return 0


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse what the command itself takes; a wrong value is one sentence, not usage and exit."""

    def fail(message: str) -> None:
        raise UserError(f"command line: {message}")

    parser.error = fail  # type: ignore[assignment,method-assign]
    return parser.parse_known_args(words)


def _curate_help() -> str:
    from curation.recipe import CurateRecipe
    from pipelines.recipe import fields

    lines = [
        "usage: granary curate [--config RECIPE.yaml] --pool DIR_OR_URL [--seeds DIR_OR_URL] [--references DIR_OR_URL]",
        "                      --out RUN [--any.field VALUE ...] [--workers N] [--runner PROFILE] [-- BEAM OPTIONS]",
        "",
        CurateRecipe.__doc__ or "",
        "",
        "  --config FILE      a recipe; the options below override its fields",
        "  --workers N        local workers; default: one per core",
        "  --runner PROFILE   a file of configs/runners/ that names a Beam runner",
        "  --debug            show tracebacks",
        "",
        "fields of the recipe, with their defaults:",
    ]
    for key, default, text in fields(CurateRecipe):
        lines.append(f"  --{key:<28} {text} [{default}]")
    return "\n".join(lines)


def _explain(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary explain", description="Tell the story of one image of a run.")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("image", metavar="ID_OR_URI", help="a uri of the ledger, or the beginning of an id")
    known = parser.parse_args(words)
    from curation.explain import explain
    from curation.lookup import Files, open_run

    run, recipe = open_run(known.run)
    print(explain(run, Files(run, recipe.decode.max_bytes), known.image))
    return 0


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary report", description="Write RUN/report/index.html again.")
    parser.add_argument("run", help="the run directory")
    known = parser.parse_args(words)
    from pipelines.runs import write_report

    print(write_report(known.run))
    return 0


def _publish(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "granary publish",
        description="Publish the dataset of a run on the Hugging Face Hub. Killed, the same command goes on where it "
        "stopped. The token comes from HF_TOKEN or `hf auth login`.",
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="the dataset repository")
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print what would be sent")
    parser.add_argument("--branch", default="main", help="branch to write to; created where it is missing [main]")
    parser.add_argument("--ledger", action="store_true", help="publish the ledger too, as config `ledger`")
    parser.add_argument("--embeddings", action="store_true", help="publish the copy descriptors of the kept images too")
    known = parser.parse_args(words)
    quiet_libraries()
    from pipelines.publish import publish

    publish(
        known.run,
        known.repo,
        private=known.private,
        dry_run=known.dry_run,
        branch=known.branch,
        ledger=known.ledger,
        embeddings=known.embeddings,
    )
    return 0


def _demo(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary demo", description=COMMANDS["demo"])
    parser.add_argument("--out", default="runs/demo", help="folder for the pool and the run [runs/demo]")
    parser.add_argument("--workers", type=int, default=0, help="local workers; default: one per core")
    known = parser.parse_args(words)
    quiet_libraries()
    from pipelines.demo import demo

    return demo(known.out, _engine(known.workers, None, []))


def quiet_libraries() -> None:
    """Keep progress bars and advice of libraries out of the terminal; must be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


HANDLERS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "curate": _curate,
    "explain": _explain,
    "report": _report,
    "publish": _publish,
}
