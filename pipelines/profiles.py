"""Runner profiles: Beam options kept apart from recipes, one YAML file per way to run."""

from __future__ import annotations

import yaml

from curation import storage
from curation.errors import UserError
from pipelines.recipe import shipped


def load_profile(path: str) -> list[str]:
    """Return the Beam options of a profile as command-line words.

    Args:
        path: of a YAML file with a mapping `options`, or the name of one in granary's own `configs/runners/`.

    Raises:
        UserError: no such file, or not a profile.
    """
    if not storage.exists(path):
        name = path.removeprefix("configs/runners/").removesuffix(".yaml")
        try:
            path = shipped(f"runners/{name}.yaml")
        except UserError:
            raise UserError(
                f"runner: there is no profile {path!r}; give a YAML file, or threads or processes"
            ) from None
    try:
        profile = yaml.safe_load(storage.read_bytes(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"runner: {path} is not a YAML file: {' '.join(str(error).split())}") from None
    options = profile.get("options") if isinstance(profile, dict) else None
    if not isinstance(options, dict):
        raise UserError(f"runner: {path} needs a mapping `options` of Beam options, such as runner: FnApiRunner")
    words = []
    for key, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{key}" if one is True else f"--{key}={one}" for one in values if one is not False]
    return words
