"""`python -m granary.synth.pug.world --port 9000`: serve the embedded world; prints a line of JSON when it is ready."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys

from granary.curation.errors import UserError
from granary.synth.pug.world.server import serve


def main() -> int:
    """Parse the command line and serve until told to stop."""
    parser = argparse.ArgumentParser("python -m granary.synth.pug.world", description=__doc__)
    parser.add_argument("--port", type=int, default=9000, help="TCP port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--unix", action="store_true", help="also listen on UnrealCV's Unix socket for that port")
    parser.add_argument("--tracer", choices=("auto", "embree", "numpy"), default="auto", help="what casts the rays")
    parser.add_argument("--save-to", metavar="FOLDER", help="let clients save pictures as files in this folder")
    parser.add_argument("--parent", type=int, help="stop when this process is no longer the parent")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    parent = options.parent
    try:
        serve(
            options.port,
            options.unix,
            options.tracer,
            options.save_to,
            ready=lambda address: print(json.dumps(address), flush=True),
            alive=lambda: parent is None or os.getppid() == parent,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
