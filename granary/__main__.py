"""`python -m granary`: the command line."""

import sys

from granary.pipelines.command import main

sys.exit(main())
