"""`python -m jsclient.cli` is `jsctl`."""

import sys

from . import main

sys.exit(main())
