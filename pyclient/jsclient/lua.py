"""A syntax check for Lua, so that an error is told before anything is sent."""

from __future__ import annotations


def check_lua(source: bytes, name: str) -> None:
    """Says where a Lua source has a syntax error."""
