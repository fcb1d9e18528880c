"""Run `jsctl` with `python -m jsclient.cli`."""

import sys

from .main import main

sys.exit(main())
