"""Runner profiles: Beam options kept apart from recipes, one YAML file per way to run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.trees import yaml_tree
from granary.pipelines.engine.recipe import shipped

JOB_SERVERS = {"PortableRunner", "FlinkRunner", "SparkRunner", "PrismRunner"}


def load_profile(path: str, given: Sequence[str] = ()) -> list[str]:
    """Return the Beam options of a profile as command-line words.

    Args:
        path: of a YAML file with a mapping `options`, or the name of one in granary's own `configs/runners/`. An option
            without a value is one that the user must give.
        given: the user's own Beam options; they come last and win.

    Raises:
        UserError: no such file, not a profile, or an option is left open.
    """
    options = _read(path)
    named = {word.partition("=")[0].removeprefix("--") for word in given}
    left = [f"--{key}=..." for key, value in options.items() if value is None and key not in named]
    if left:
        raise UserError(f"runner: {path} leaves options open; add them after `--`: {' '.join(left)}")
    words = [word for key, value in options.items() for word in _words(key, value)]
    return [*words, *given]


def check_beam_options(options: Sequence[str]) -> None:
    """Raise UserError where an option is one that Apache Beam does not have: Beam itself passes over it.

    Args:
        options: Beam's, as words, those of a profile too. What a job server knows is known to that server alone.
    """
    words = [word.partition("=")[0] for word in options if word.startswith("--")]
    runner = last_value(options, "--runner")
    if not words or runner in JOB_SERVERS or not _is_there(runner):
        return
    known = _known_options()
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, sorted(known), 1)
            hint = f"did you mean {near[0]}?" if near else "see the options of Beam's runners"
            raise UserError(f"beam: {word} is no option of Apache Beam; {hint}")


def last_value(options: Sequence[str], name: str) -> str | None:
    """Return the last value of an option among words `--a=b` or `--a b`; None where it is not there."""
    value = None
    for word, after in zip(options, [*options, ""][1:], strict=True):
        key, equals, text = word.partition("=")
        if key == name:
            value = text if equals else after
    return value


def _is_there(runner: str | None) -> bool:
    """Import a runner, whose module states its options; what is wrong with one that is not there, the run tells."""
    from apache_beam.runners.runner import create_runner

    try:
        return runner is None or bool(create_runner(runner))
    except (ImportError, ValueError, RuntimeError):
        return False


def _known_options() -> set[str]:
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    parser = _BeamArgumentParser(conflict_handler="resolve", allow_abbrev=False, add_help=False)
    for stated in PipelineOptions.__subclasses__():
        stated._add_argparse_args(parser)
    return {text for action in parser._actions for text in action.option_strings}


def _words(key: str, value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if one is not None and one is not False:
            yield f"--{key}" if one is True else f"--{key}={one}"


def _read(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        name = path.removeprefix("configs/runners/").removesuffix(".yaml")
        try:
            path = shipped(f"runners/{name}.yaml")
        except UserError:
            raise UserError(
                f"runner: there is no profile {path!r}; give a YAML file, or threads or processes, dask, portable, "
                "flink, spark, dataflow or dataflow_gpu"
            ) from None
    try:
        profile = yaml_tree(storage.read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"runner: {path} is not a YAML file: {' '.join(str(error).split())}") from None
    options = profile.get("options") if isinstance(profile, dict) else None
    if not isinstance(options, dict):
        raise UserError(f"runner: {path} needs a mapping `options` of Beam options, such as runner: FnApiRunner")
    return options
