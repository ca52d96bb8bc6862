"""The commands that look at a run or send it away: explain, report, check, publish."""

from __future__ import annotations

import click

from granary.curation.errors import UserError
from granary.pipelines.cli.plain_command import PlainCommand


def _explain(run: str, image: str) -> int:
    from granary.curation.runs.explain import explain
    from granary.curation.runs.lookup import Files, open_run

    opened, recipe = open_run(run)
    print(explain(opened, Files(opened, recipe.decode.max_bytes), image))
    return 0


explain = PlainCommand(
    "explain",
    _explain,
    "Tell the story of one image of a run of granary curate: what was decided about it, where, and on what evidence. "
    "ID_OR_URI is a uri of the ledger, or the beginning of an id.",
    [click.Argument(["run"]), click.Argument(["image"], metavar="ID_OR_URI")],
    ["granary explain runs/mine pool/cat.jpg", "granary explain runs/mine 3f9a"],
)


def _report(run: str) -> int:
    from rich.console import Console

    from granary.pipelines.engine.session import print_cost, read_facts
    from granary.pipelines.kinds.registry import KINDS

    facts = read_facts(run)
    if facts["kind"] not in KINDS:
        raise UserError(f"run: {run} holds a run of granary {facts['kind']}; there are {', '.join(KINDS)}")
    print(KINDS[facts["kind"]].write_report(run))
    print_cost(Console(stderr=True, highlight=False, markup=False), facts)
    return 0


report = PlainCommand(
    "report",
    _report,
    "Write RUN/report/index.html again, and print what each stage cost and what larger pools would take.",
    [click.Argument(["run"])],
    ["granary report runs/mine"],
)


def _check(run: str, repair: bool) -> int:
    from granary.curation.runs.integrity import check_run, remove

    checked = check_run(run)
    for damage in checked.damages:
        print(f"{damage.path}: {damage.cause}")
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


def _publish(
    run: str | None, repo: str | None, print_template: bool, branch: str, licence: str | None, **switches: bool
) -> int:
    if print_template:
        from granary.curation.hub.template import shipped_template

        print(shipped_template(), end="")
        return 0
    if run is None or repo is None:
        raise click.UsageError("give the run directory and --repo ORG/NAME")
    from granary.pipelines.publish import publish

    publish(run, repo, branch=branch, licence=licence, **switches)
    return 0


publish = PlainCommand(
    "publish",
    _publish,
    "Publish the dataset of a run on the Hugging Face Hub. Killed, the same command goes on where it stopped. The "
    "token comes from HF_TOKEN or `hf auth login`.",
    [
        click.Argument(["run"], required=False),
        click.Option(["--repo"], metavar="ORG/NAME", help="the dataset repository"),
        click.Option(["--private"], is_flag=True, help="create the repository as private"),
        click.Option(["--dry-run"], is_flag=True, help="check everything and print what would be sent"),
        click.Option(
            ["--branch"], default="main", show_default=True, help="branch to write to; created where it is missing"
        ),
        click.Option(
            ["--licence", "--license"],
            metavar="ID",
            help="licence of the whole, as the Hub names it (cc-by-4.0, mit, other); default: the recipe's",
        ),
        click.Option(["--ledger"], is_flag=True, help="publish the ledger too, as config `ledger`"),
        click.Option(["--embeddings"], is_flag=True, help="publish the copy descriptors of the kept images too"),
        click.Option(
            ["--print-template"],
            is_flag=True,
            help="print the card's template; edited as RUN/card.md.j2 it is used",
        ),
    ],
    [
        "granary publish runs/mine --repo ORG/NAME --dry-run",
        "granary publish --print-template > runs/mine/card.md.j2",
    ],
)
