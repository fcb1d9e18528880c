"""Run `jsctl` with `python -m jsclient.cli`."""

import sys

from . import entry

sys.exit(entry())
