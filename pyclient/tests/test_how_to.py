"""The command lines of docs/how-to/run-jobs.md, run against the fake nodes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Callable

from conftest import Ran
from fake import Fake

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-jobs.md"


def test_command_lines_of_run_jobs_succeed(fake: Fake, jsctl: Callable[..., Ran]) -> None:
    for program in ("apt-get", "curl"):
        fake.programs[program] = lambda n, c: {"streams": ["done\n", ""]}
    found = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line[2:] for block in found for line in block.splitlines() if line.startswith("$ jsctl ")]
    assert len(lines) > 7
    for line in lines:
        ran = jsctl(*shlex.split(line)[1:])
        assert ran.code == 0, (line, ran)
