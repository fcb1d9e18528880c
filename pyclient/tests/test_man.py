"""The man pages: they match the texts of --help, and formatters accept them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from test_real import BIN, ROOT

PAGES = ("pyclient/man/jsctl.1", "agent/packaging/jsagent.8", "acc/packaging/jsacc.8")


@pytest.mark.skipif(BIN is None, reason="jsacc and jsagent are not built")
def test_man_pages_match_the_help() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/man", "--check", str(BIN)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_man_page_has_no_warnings(page: str) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", ROOT / page], capture_output=True, text=True)
    warnings = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert warnings == []


def test_man_page_of_jsctl_describes_every_subcommand() -> None:
    from jsclient.cli.complete import _names
    from jsclient.cli.parser import build

    page = (ROOT / PAGES[0]).read_text()
    for name in _names(build()):
        assert f".SS jsctl {name}" in page, name
