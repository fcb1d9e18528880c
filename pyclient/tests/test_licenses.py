"""The licenses of what the client depends on."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Iterator, Set

from packaging.requirements import Requirement

# As their packages name them: an SPDX expression, a name, or the last part of a classifier.
ALLOWED = {
    "MIT", "MIT License", "BSD-2-Clause", "BSD-3-Clause", "BSD License", "Apache-2.0", "Apache 2", "Apache License 2.0",
    "Apache Software License", "PSF-2.0", "Python Software Foundation License", "ISC",
}


def needed(name: str, extras: Set[str], seen: Set[str]) -> Iterator[str]:
    """The distribution and all that it requires here, each once."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    seen.add(key)
    yield key
    for text in metadata.requires(key) or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield from needed(one.name, set(one.extras), seen)


def licenses(name: str) -> Set[str]:
    about = metadata.metadata(name)
    found = {about.get("License-Expression", ""), about.get("License", "")}
    found |= {c.split(" :: ")[-1] for c in about.get_all("Classifier") or () if c.startswith("License :: ")}
    return found - {"", "OSI Approved"}


def test_every_dependency_has_an_allowed_license() -> None:
    names = [name for name in needed("jsclient", {"yaml", "toml"}, set()) if name != "jsclient"]
    assert {"redis", "rich", "pyyaml"} <= set(names)
    others = {name: licenses(name) for name in names if not licenses(name) & ALLOWED}
    assert not others
