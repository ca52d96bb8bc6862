"""The commands about models: train, evaluate, results, compare, partition, environments, export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel

from granary.curation.errors import needs
from granary.pipelines.cli.plain_command import PlainCommand
from granary.pipelines.cli.recipe_command import Further, Given, Page, RecipeCommand, steal_lock_option


def _train_recipe(given: Given) -> type[BaseModel]:
    from granary.training.recipe import TrainRecipe

    return TrainRecipe


def _method_options(given: Given) -> Iterator[Further]:
    """Yield the options of the method that was named, if that is one."""
    from granary.training.methods import METHODS, load_method

    method = given.tree().get("method")
    if isinstance(method, str) and method in METHODS:
        with needs("train"):
            yield Further(f"Options of {method}", load_method(method).Options)


def _train(given: Given, dry_run: bool, steal_lock: bool) -> int:
    from rich.console import Console

    from granary.pipelines.engine.recipe import load_recipe
    from granary.training.recipe import TrainRecipe

    with needs("train"):
        from granary.training.run.loop import train
        from granary.training.run.trial import try_training

        recipe = load_recipe(TrainRecipe, given.config, given.overrides)
        console = Console(stderr=True, highlight=False, markup=False)
        if dry_run:
            try_training(recipe, console)
            return 0
        facts = train(recipe, console, steal_lock)
    print(facts["checkpoint"])
    return 0 if facts["finished"] else 130


train = RecipeCommand(
    "train",
    _train,
    _train_recipe,
    Page(
        ["--data RUN", "--out TRAIN"],
        [
            "granary train --config train/supervised_tiny.yaml --data runs/animals --out runs/first",
            "granary train --help --method dinov2",
        ],
        _method_options,
        "; with --method NAME the options of that method too",
    ),
    [
        click.Option(["--dry-run"], is_flag=True, help="open data and models, take and time a few steps, and stop"),
        steal_lock_option(),
    ],
)


class _Protocols(click.Argument):
    """The protocols before the options; left to the recipe, completed from their names."""

    def add_to_parser(self, parser: object, ctx: click.Context) -> None:
        """Leave the word to the recipe."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Return the protocols that begin so, after those that are there already."""
        from granary.pipelines.engine.protocols import PROTOCOLS

        before, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(before + comma + name) for name in PROTOCOLS if name.startswith(begun)]


class _Evaluate(RecipeCommand):
    """Takes the protocols before the options, with commas between them."""

    def spelt_out(self, overrides: list[str]) -> list[str]:
        """Return the words with the protocols written as options."""
        if not overrides or overrides[0].startswith("-"):
            return overrides
        named = [word for name in overrides[0].split(",") for word in ("--protocols", name)]
        return [*named, *overrides[1:]]


def _evaluate_recipe(given: Given) -> type[BaseModel]:
    from granary.pipelines.engine.protocols import EvaluateRecipe

    return EvaluateRecipe


def _protocols_named(given: Given) -> Sequence[str]:
    named = given.tree().get("protocols") or []
    return [named] if isinstance(named, str) else [str(name) for name in named] if isinstance(named, list) else []


def _protocol_options(given: Given) -> Iterator[Further]:
    """Yield the options of each protocol that was named."""
    from granary.pipelines.engine.protocols import PROTOCOLS
    from granary.training.evaluation.protocols.registry import load_protocol

    for name in _protocols_named(given):
        if name in PROTOCOLS:
            with needs("train"):
                yield Further(f"Options of {name}", load_protocol(name, PROTOCOLS).options)


def _evaluate(given: Given) -> int:
    from granary.pipelines.engine.protocols import EvaluateRecipe
    from granary.pipelines.engine.recipe import load_recipe
    from granary.training.evaluation.evaluate import evaluate

    with needs("train"):
        evaluate(load_recipe(EvaluateRecipe, given.config, given.overrides))
    return 0


evaluate = _Evaluate(
    "evaluate",
    _evaluate,
    _evaluate_recipe,
    Page(
        ["PROTOCOL[,PROTOCOL]", "--model PATH", "--data RUN", "[--out scores.json]"],
        [
            "granary evaluate knn,few-shot --model runs/first --data runs/animals --out runs/first/scores.json",
            "granary evaluate knn --help",
        ],
        _protocol_options,
        "; after a protocol its options too",
    ),
    [_Protocols(["protocols"], required=False, expose_value=False, metavar="PROTOCOL[,PROTOCOL]")],
)


def _results(scores: Sequence[str], metric: Sequence[str], csv: str | None, plot: str | None) -> int:
    from granary.training.evaluation.results import results

    with needs("train"):
        print(results(scores, metric, csv, plot))
    return 0


results = PlainCommand(
    "results",
    _results,
    "Show the scores of several models side by side: files of granary evaluate, folders with scores.json, or training "
    "directories.",
    [
        click.Argument(["scores"], nargs=-1, required=True, metavar="[NAME=]PATH..."),
        click.Option(["--metric"], multiple=True, metavar="NAME", help="knn, linear/accuracy*, ...; repeat for more"),
        click.Option(["--csv"], metavar="FILE", help="CSV file to write, with every metric"),
        click.Option(["--plot"], metavar="FILE", help="picture to write: .svg, .png or .pdf"),
    ],
    ["granary results trained=runs/first random=runs/random.json --plot runs/table.svg"],
)


class _Compare(RecipeCommand):
    """Takes the models before the options."""

    def spelt_out(self, overrides: list[str]) -> list[str]:
        """Return the words with the models written as options."""
        count = next((place for place, word in enumerate(overrides) if word.startswith("-")), len(overrides))
        return [*(word for model in overrides[:count] for word in ("--models", model)), *overrides[count:]]


def _compare_recipe(given: Given) -> type[BaseModel]:
    from granary.training.evaluation.comparison_recipe import CompareRecipe

    return CompareRecipe


def _compare(given: Given) -> int:
    from granary.pipelines.engine.recipe import load_recipe
    from granary.training.evaluation.comparison_recipe import CompareRecipe

    with needs("train"):
        from granary.training.evaluation.comparison import compare as work

        work(load_recipe(CompareRecipe, given.config, given.overrides))
    return 0


compare = _Compare(
    "compare",
    _compare,
    _compare_recipe,
    Page(
        ["[NAME=]MODEL...", "--data RUN", "--out PAGE.html"],
        ["granary compare trained=runs/first random=random:runs/first --data runs/animals --out runs/compared.html"],
    ),
)


def _partition_recipe(given: Given) -> type[BaseModel]:
    from granary.training.evaluation.partition_recipe import PartitionRecipe

    return PartitionRecipe


def _partition(given: Given) -> int:
    from granary.pipelines.engine.recipe import load_recipe
    from granary.training.evaluation.partition_recipe import PartitionRecipe

    with needs("train"):
        from granary.training.evaluation.partition import write_partition

        write_partition(load_recipe(PartitionRecipe, given.config, given.overrides))
    return 0


partition = RecipeCommand(
    "partition",
    _partition,
    _partition_recipe,
    Page(
        ["--data RUN", "--per_class N", "--out RUN"],
        [
            "granary partition --data runs/animals --per_class 100 --out runs/parted",
            "granary partition --data runs/birds --per_class 300 --largest 500 --copies keep --out runs/birds-300",
        ],
    ),
)


def _environments(model: Sequence[str], data: str, out: str, device: str) -> int:
    with needs("train"):
        from granary.training.evaluation.environments import write_environments

        write_environments(model, data, out, device=device)
    return 0


environments = PlainCommand(
    "environments",
    _environments,
    "Write a dataset again with the environment of every picture in a column, as trainings of method xrm tell it: "
    "1 for the pictures that contradict a shortcut. Of several trainings that with the largest flip rate decides.",
    [
        click.Option(
            ["--model"], required=True, multiple=True, metavar="TRAIN", help="a training of xrm; repeat for more"
        ),
        click.Option(["--data"], required=True, metavar="RUN", help="a run or its dataset; a path or URL"),
        click.Option(["--out"], required=True, metavar="RUN", help="the run directory to write; it must be new"),
        click.Option(["--device"], default="cpu", show_default=True, help="cpu, cuda or cuda:N"),
    ],
    ["granary environments --model runs/xrm --data runs/birds --out runs/birds-environments"],
)


def _export(model: str, out: str, format: str) -> int:
    from granary.training.models.export import export

    print(f"written; it is read by {export(model, out, format)}")
    return 0


export = PlainCommand(
    "export",
    _export,
    "Write a trained model as another library reads it. Every training fits transformers, but for rotary positions and "
    "ResNets with a small stem; timm fits ViTs, and ResNets with four stages; open_clip fits trainings of clip.",
    [
        click.Option(
            ["--model"],
            required=True,
            metavar="PATH",
            help="a training directory, a checkpoint folder or hf:ID_OR_PATH",
        ),
        click.Option(["--out"], required=True, metavar="DIR", help="a new local folder"),
        click.Option(
            ["--format"],
            default="transformers",
            show_default=True,
            type=click.Choice(["transformers", "timm", "open_clip"]),
            help="the library that is to read it",
        ),
    ],
    ["granary export --model runs/first --out models/first"],
)
