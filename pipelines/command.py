"""The command line: `granary demo | curate | render | sample | pack | ...`, each with `--help`.

A recipe's fields are options: `--dedup.threshold 0.9`. What follows `--` goes to Beam.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from granary.curation.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from granary.pipelines.engine.units import Engine
    from granary.pipelines.kinds.registry import Kind

COMMANDS = {
    "demo": "make a small pool with planted copies, leaks and broken files, curate it and check the result",
    "curate": "curate a pool of images: deduplicate, remove leaks, retrieve what resembles seeds",
    "render": "render a grid of factors through UnrealCV, or the embedded world",
    "sample": "sample a diffusion model under the feedback of a classifier",
    "pack": "pack images with mask-aligned descriptions into dense captions",
    "train": "train a model on the dataset of a run",
    "evaluate": "measure a model by protocols",
    "results": "show the scores of several models side by side",
    "export": "write a trained model in the format of transformers",
    "unreal": "serve the embedded world to any UnrealCV client",
    "explain": "tell the story of one image of a run",
    "report": "write the report of a run again, and print what the run cost",
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
    from granary.pipelines.engine.profiles import load_profile
    from granary.pipelines.engine.units import Engine

    return Engine(load_profile(runner, beam) if runner else beam, workers)


def _run_kind(name: str, words: list[str]) -> int:
    """Run the pipeline of one kind: its recipe, then what it makes."""
    from granary.pipelines.kinds.registry import KINDS, load

    kind = KINDS[name]
    words, beam = _split_beam(words)
    parser = argparse.ArgumentParser(f"granary {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--runner")
    parser.add_argument("-h", "--help", action="store_true")
    for flag, _ in kind.flags:
        parser.add_argument(f"--{flag}", action="store_true")
    known, overrides = _parse(parser, words)
    quiet_libraries()
    if known.help:
        print(_help_of(name, kind))
        return 0
    from granary.pipelines.engine.recipe import load_recipe

    recipe = load_recipe(load(kind.recipe), known.config, overrides)
    engine = _engine(known.workers, known.runner, beam)
    flags = {flag.replace("-", "_"): getattr(known, flag.replace("-", "_")) for flag, _ in kind.flags}
    load(kind.run)(recipe, engine, **flags)
    return 0


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse what the command itself takes; a wrong value is one sentence, not usage and exit."""

    def fail(message: str) -> None:
        raise UserError(f"command line: {message}")

    parser.error = fail  # type: ignore[assignment,method-assign]
    return parser.parse_known_args(words)


def _help_of(name: str, kind: Kind) -> str:
    from granary.pipelines.engine.recipe import fields
    from granary.pipelines.kinds.registry import load

    model = load(kind.recipe)
    start = f"usage: granary {name} "
    lines = [
        start + " ".join(filter(None, ["[--config RECIPE.yaml]", kind.usage])),
        " " * len(start) + "--out RUN [--any.field VALUE ...] [--workers N] [--runner PROFILE] [-- BEAM OPTIONS]",
        "",
        model.__doc__ or "",
        "",
        "  --config FILE      a recipe; the options below override its fields",
        *(f"  --{flag:<17}{text}" for flag, text in kind.flags),
        "  --workers N        local workers; default: one per core",
        "  --runner PROFILE   a file of configs/runners/ that names a Beam runner",
        "  --debug            show tracebacks",
        "",
        "fields of the recipe, with their defaults:",
    ]
    for key, default, text in fields(model):
        lines.append(f"  --{key:<28} {text} [{default}]")
    return "\n".join(lines)


def _explain(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary explain", description="Tell the story of one image of a run.")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("image", metavar="ID_OR_URI", help="a uri of the ledger, or the beginning of an id")
    known = parser.parse_args(words)
    from granary.curation.runs.explain import explain
    from granary.curation.runs.lookup import Files, open_run

    run, recipe = open_run(known.run)
    print(explain(run, Files(run, recipe.decode.max_bytes), known.image))
    return 0


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary report", description="Write RUN/report/index.html again.")
    parser.add_argument("run", help="the run directory")
    known = parser.parse_args(words)
    from rich.console import Console

    from granary.curation.runs.facts import read_facts
    from granary.pipelines.engine.session import print_cost
    from granary.pipelines.kinds.registry import KINDS, load

    facts = read_facts(known.run)
    print(load(KINDS[facts["kind"]].report)(known.run))
    print_cost(Console(stderr=True, highlight=False, markup=False), facts)
    return 0


def _publish(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "granary publish",
        description="Publish the dataset of a run on the Hugging Face Hub. Killed, the same command goes on where it "
        "stopped. The token comes from HF_TOKEN or `hf auth login`.",
    )
    parser.add_argument("run", nargs="?", help="the run directory")
    parser.add_argument("--repo", metavar="ORG/NAME", help="the dataset repository")
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print what would be sent")
    parser.add_argument("--branch", default="main", help="branch to write to; created where it is missing [main]")
    parser.add_argument("--ledger", action="store_true", help="publish the ledger too, as config `ledger`")
    parser.add_argument("--embeddings", action="store_true", help="publish the copy descriptors of the kept images too")
    parser.add_argument(
        "--print-template", action="store_true", help="print the card's template; edited as RUN/card.md.j2 it is used"
    )
    known = parser.parse_args(words)
    quiet_libraries()
    if known.print_template:
        from granary.curation.hub.card import shipped_template

        print(shipped_template(), end="")
        return 0
    if not known.run or not known.repo:
        parser.error("give the run directory and --repo ORG/NAME")
    from granary.pipelines.publish import publish

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


DEMOS = {
    "curate": ("granary.pipelines.demos.curate:demo", COMMANDS["demo"]),
    "render": ("granary.pipelines.demos.render:demo", "render a small world with the embedded renderer"),
    "sample": (
        "granary.pipelines.demos.sample:demo",
        "balance long-tailed digits with guided samples of a small model",
    ),
    "train": ("granary.pipelines.demos.train:demo", "train a tiny model on a pool as it is, deduplicated and curated"),
}


def _demo(words: list[str]) -> int:
    name = words.pop(0) if words and words[0] in DEMOS else "curate"
    where, text = DEMOS[name]
    parser = argparse.ArgumentParser(
        f"granary demo {name}", description=text[:1].upper() + text[1:] + ".", epilog=f"demos: {', '.join(DEMOS)}"
    )
    default = "runs/demo" if name == "curate" else f"runs/demo-{name}"
    parser.add_argument("--out", default=default, help=f"folder for everything it makes [{default}]")
    parser.add_argument("--workers", type=int, default=0, help="local workers; default: one per core")
    if name == "curate":
        parser.add_argument("--world", action="store_true", help="curate a rendered pool")
    if name == "train":
        parser.add_argument("--seed", type=int, default=0, help="of pictures, weights and order [0]")
    known = vars(parser.parse_args(words))
    quiet_libraries()
    from granary.pipelines.kinds.registry import load

    out, workers = known.pop("out"), known.pop("workers")
    return int(load(where)(out, _engine(workers, None, []), **known))


def _unreal(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary unreal", description="The embedded world as an UnrealCV server.")
    serve = parser.add_subparsers(dest="action", required=True, metavar="serve").add_parser(
        "serve", help="serve until interrupted", description="Serve the embedded world to any UnrealCV client."
    )
    serve.add_argument("--port", type=int, default=9000, help="on 127.0.0.1; 0 takes a free one [9000]")
    known = parser.parse_args(words)
    from granary.synth.pug.world import serve as serve_world

    serve_world(known.port)
    return 0


def _evaluate(words: list[str]) -> int:
    """Evaluate: the protocols stand before the options, with commas between them."""
    from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate

    quiet_libraries()
    protocols = words.pop(0).split(",") if words and not words[0].startswith("-") else []
    usage = "evaluate PROTOCOL[,PROTOCOL] --model PATH --data RUN [--out scores.json]"
    known, overrides = _config_and_overrides(usage, words, EvaluateRecipe)
    if known is None:
        return 0
    from granary.pipelines.engine.recipe import load_recipe

    evaluate(load_recipe(EvaluateRecipe, known.config, [*_repeated("protocols", protocols), *overrides]))
    return 0


def _train(words: list[str]) -> int:
    """Train: the method of the recipe decides which recipe it is."""
    from rich.console import Console

    from granary.training.recipe import TrainRecipe

    quiet_libraries()
    known, overrides = _config_and_overrides("train --config RECIPE.yaml --data RUN --out TRAIN", words, TrainRecipe)
    if known is None:
        return 0
    from granary.pipelines.engine.recipe import load_recipe, read_tree

    if read_tree(known.config, overrides).get("method") == "dci_lora":
        from granary.training.methods.dci_lora import FinetuneRecipe, finetune

        finetune(load_recipe(FinetuneRecipe, known.config, overrides))
        return 0
    from granary.training.run.loop import train

    console = Console(stderr=True, highlight=False, markup=False)
    facts = train(load_recipe(TrainRecipe, known.config, overrides), console)
    print(facts["checkpoint"])
    return 0 if facts["finished"] else 130


def _results(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary results", description="Show the scores of several models side by side.")
    what = "files of granary evaluate, folders with scores.json, or training directories"
    parser.add_argument("scores", nargs="+", metavar="[NAME=]PATH", help=what)
    parser.add_argument("--metric", action="append", default=[], help="knn, linear/accuracy*, ...; repeat for more")
    parser.add_argument("--csv", help="CSV file to write, with every metric")
    parser.add_argument("--plot", help="picture to write: .svg, .png or .pdf")
    known = parser.parse_args(words)
    from granary.training.evaluation.results import results

    print(results(known.scores, known.metric, known.csv, known.plot))
    return 0


def _export(words: list[str]) -> int:
    parser = argparse.ArgumentParser("granary export", description="Write a trained model in transformers' format.")
    parser.add_argument("--model", required=True, help="a training directory, a checkpoint folder or hf:ID_OR_PATH")
    parser.add_argument("--out", required=True, help="a new local folder")
    known = parser.parse_args(words)
    quiet_libraries()
    from granary.training.models.export import export

    name = export(known.model, known.out)
    print(f"{known.out}: transformers.{name}.from_pretrained reads it")
    return 0


def _config_and_overrides(
    usage: str, words: list[str], model: type[BaseModel]
) -> tuple[argparse.Namespace | None, list[str]]:
    """Parse --config and the overrides of a recipe; None when only its help was asked for."""
    from granary.pipelines.engine.recipe import fields

    parser = argparse.ArgumentParser("granary", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    known, overrides = _parse(parser, words)
    if not known.help:
        return known, overrides
    lines = [f"  --{key:<28} {text} [{default}]" for key, default, text in fields(model)]
    print(f"usage: granary {usage} [--any.field VALUE ...]", "", model.__doc__ or "", "", *lines, sep="\n")
    return None, overrides


def _repeated(key: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (f"--{key}", value)]


def quiet_libraries() -> None:
    """Keep progress bars and advice of libraries out of the terminal; must be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


HANDLERS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    **{name: functools.partial(_run_kind, name) for name in ("curate", "render", "sample", "pack")},
    "explain": _explain,
    "train": _train,
    "evaluate": _evaluate,
    "results": _results,
    "export": _export,
    "unreal": _unreal,
    "report": _report,
    "publish": _publish,
}
