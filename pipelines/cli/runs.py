"""The commands that look at a run or hand it on: explain, report, check, convert, publish."""

from __future__ import annotations

import click

from granary.curation.errors import UserError
from granary.curation.store.printable import printable
from granary.pipelines.cli.plain_command import PlainCommand


def _explain(run: str, image: str) -> int:
    from granary.curation.runs.explain import explain
    from granary.curation.runs.lookup import Files, open_run

    opened, recipe = open_run(run)
    print(printable(explain(opened, Files(opened, recipe.decode.max_bytes), image)))
    return 0


explain = PlainCommand(
    "explain",
    _explain,
    "Tell the story of one image of a run of granary curate: what was decided about it, where, and on what evidence. "
    "IMAGE is a uri of the ledger, the beginning of an id, a file name or the path of a file. Of a reference it tells "
    "what leaked, of a seed what it retrieved.",
    [click.Argument(["run"]), click.Argument(["image"])],
    [
        "granary explain runs/mine pool/cat.jpg",
        "granary explain runs/mine 3f9a",
        "granary explain runs/mine benchmark/1.png",
    ],
)


def _report(run: str) -> int:
    from rich.console import Console

    from granary.curation.runs.facts import recipe_tree
    from granary.pipelines.engine.session import print_cost, read_facts
    from granary.pipelines.kinds.registry import KINDS, kind_of
    from granary.training.report import training_facts, write_report

    training = training_facts(run)
    if training is not None:
        print(write_report(run, training))
        return 0
    facts = read_facts(run)
    if facts["kind"] not in KINDS:
        raise UserError(f"run: {run} holds a run of granary {facts['kind']}; there are {', '.join(KINDS)}")
    print(kind_of(facts["kind"], recipe_tree(run)).write_report(run))
    print_cost(Console(stderr=True, highlight=False, markup=False), facts)
    return 0


report = PlainCommand(
    "report",
    _report,
    "Write RUN/report/index.html again, of a run or a training; of a run, print what each stage cost and what larger "
    "pools would take.",
    [click.Argument(["run"])],
    ["granary report runs/mine"],
)


def _check(run: str, repair: bool) -> int:
    from granary.curation.runs.integrity import check_run, remove

    checked = check_run(run)
    for damage in checked.damages:
        print(printable(f"{damage.path}: {damage.cause}", keep=""))
    print(f"{checked.parts:,} parts compared with their markers; {len(checked.damages)} things are damaged")
    if repair and checked.damages:
        remove(run, checked.damages)
        print("what is damaged was removed; run the granary command of this run again, which makes it anew")
    return 1 if checked.damages and not repair else 0


check = PlainCommand(
    "check",
    _check,
    "Compare every part of a run with the size and the SHA-256 that were noted when it was written. The exit status is "
    "1 when something is damaged.",
    [
        click.Argument(["run"]),
        click.Option(["--repair"], is_flag=True, help="remove what is damaged: the run's command makes it again"),
    ],
    ["granary check runs/mine", "granary check runs/mine --repair"],
)


def _convert(run: str, out: str, format: str, workers: int) -> int:
    if format == "fiftyone":
        from granary.curation.exchange.fiftyone import write_fiftyone

        copied = write_fiftyone(run, out)
        print(
            f"{copied.pictures:,} pictures with their rows of the ledger{f', {copied.lost:,} lost' * bool(copied.lost)}"
        )
        return 0
    from granary.curation.exchange.webdataset import write_webdataset

    written = write_webdataset(run, out, workers)
    empty = sum(tar.empty for tar in written)
    lacking = f", {empty:,} of them without an image" * bool(empty)
    print(f"{sum(tar.samples for tar in written):,} samples in {len(written)} tars{lacking}")
    return 0


convert = PlainCommand(
    "convert",
    _convert,
    "Write the shards of a run as WebDataset tars, KEY.png, KEY.txt, KEY.cls and KEY.json for each sample, with the "
    "original bytes. Killed, the same command goes on where it stopped. With --format fiftyone: every picture of a "
    "curation's pool, kept or dropped, and its row of the ledger, as a folder that FiftyOne and cleanvision read.",
    [
        click.Argument(["run"]),
        click.Option(["--out"], required=True, metavar="DIR_OR_URL", help="a new folder"),
        click.Option(
            ["--format"],
            type=click.Choice(["webdataset", "fiftyone"]),
            default="webdataset",
            show_default=True,
            help="what is written",
        ),
        click.Option(
            ["--workers"], type=click.IntRange(1), default=4, show_default=True, metavar="N", help="tars at a time"
        ),
    ],
    ["granary convert runs/mine --out tars/mine", "granary convert runs/mine --out looked-at --format fiftyone"],
)


def _publish(
    run: str | None, repo: str | None, print_template: bool, branch: str, licence: str | None, **switches: bool
) -> int:
    from granary.pipelines.publish import publish
    from granary.training.report import training_facts

    if print_template:
        from granary.curation.hub.template import MODEL_TEMPLATE, TEMPLATE, shipped_template

        print(shipped_template(TEMPLATE if run is None or training_facts(run) is None else MODEL_TEMPLATE), end="")
        return 0
    if run is None or repo is None:
        raise click.UsageError("give the directory of a run or a training, and --repo ORG/NAME")
    publish(run, repo, branch=branch, licence=licence, **switches)
    return 0


publish = PlainCommand(
    "publish",
    _publish,
    "Publish the dataset of a run, or the model of a training, on the Hugging Face Hub. Killed, the same command goes "
    "on where it stopped. The token comes from HF_TOKEN or `hf auth login`.",
    [
        click.Argument(["run"], required=False),
        click.Option(["--repo"], metavar="ORG/NAME", help="the repository of the dataset or model"),
        click.Option(["--private"], is_flag=True, help="create the repository as private"),
        click.Option(["--dry-run"], is_flag=True, help="check everything and print what would be sent"),
        click.Option(
            ["--branch"], default="main", show_default=True, help="branch to write to; created where it is missing"
        ),
        click.Option(
            ["--licence", "--license"],
            metavar="ID",
            help="licence of the whole, as the Hub names it (cc-by-4.0, mit, other); default: that of a run's recipe",
        ),
        click.Option(["--ledger"], is_flag=True, help="publish the ledger too, as config `ledger`"),
        click.Option(["--embeddings"], is_flag=True, help="publish the copy descriptors of the kept images too"),
        click.Option(
            ["--print-template"],
            is_flag=True,
            help="print the card's template, with a training that of a model; edited as RUN/card.md.j2 it is used",
        ),
    ],
    [
        "granary publish runs/mine --repo ORG/NAME --dry-run",
        "granary publish runs/first --repo ORG/NAME --licence mit",
        "granary publish --print-template > runs/mine/card.md.j2",
    ],
)
