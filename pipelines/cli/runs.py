"""The commands that look at a finished run or send it away: explain, report, publish."""

from __future__ import annotations

import click

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


def _publish(run: str | None, repo: str | None, print_template: bool, branch: str, **switches: bool) -> int:
    if print_template:
        from granary.curation.hub.card import shipped_template

        print(shipped_template(), end="")
        return 0
    if run is None or repo is None:
        raise click.UsageError("give the run directory and --repo ORG/NAME")
    from granary.pipelines.publish import publish

    publish(run, repo, branch=branch, **switches)
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
