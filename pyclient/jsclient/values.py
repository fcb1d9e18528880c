"""Decoding of values of nodes within bounds, and conversion to JSON. Pure.

A value may be deeply nested, a few bytes of YAML may expand to gigabytes, and TOML and YAML have dates, sets, bytes
and numbers that JSON does not have.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, Dict, List, Mapping, Tuple, Union

from .errors import ResultDecodeError

#: Deepest nesting of lists and objects. The limit of controllers is 128.
MAX_NESTING = 100
#: Most items and characters of a YAML value with its aliases expanded, or twice the length of its text where that is more.
MAX_EXPANDED_SIZE = 4 * 1024 * 1024
#: A whole number with more digits is written as hexadecimal text: Python refuses to print it.
MAX_DIGITS = 4000

_NAMES = {20: "JSON", 21: "YAML", 22: "TOML"}
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[{]|[\]}]")
#: Written escaped in JSON: surrogates cannot be encoded, the others can control a terminal.
_ESCAPED = re.compile("[\ud800-\udfff\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def load_json(text: Union[str, bytes]) -> Any:
    """Parse JSON; raise `ValueError` when it is malformed or nested deeper than `MAX_NESTING`."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogatepass")
    if too_deep(text):
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    return json.loads(text)


def too_deep(text: str) -> bool:
    """Return whether JSON text is nested deeper than `MAX_NESTING` levels."""
    return text.count("[") + text.count("{") > MAX_NESTING and _json_depth(text) > MAX_NESTING


def dump_json(value: object, indent: Union[int, None] = None, ascii: bool = False) -> str:
    """Return any value as valid JSON: dates as text, bytes as base64, NaN and infinite numbers as null."""
    text = json.dumps(plain(value), ensure_ascii=ascii, indent=indent, allow_nan=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain(value: Any, finite: bool = True, _depth: int = 0) -> Any:
    """Return the value in the types of JSON; with `finite` NaN and infinite numbers are `None`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        # 3.3 bits a digit; `int` of a subclass may print as anything.
        return int(value) if value.bit_length() < MAX_DIGITS * 3 else hex(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) or not finite else None
    if _depth > MAX_NESTING + 10:
        return "…"
    if isinstance(value, Mapping):
        return {_key(k): plain(v, finite, _depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, finite, _depth + 1) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v, finite, _depth + 1) for v in value), key=lambda v: (str(type(v)), str(v)))
    if isinstance(value, (bytes, bytearray)):
        import base64

        return base64.b64encode(value).decode()
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return str(value)


def integer(value: object) -> int:
    """Return a whole number that fits 64 bits; 0 for any other value."""
    return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else 0


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    key = plain(key, finite=False)
    return key if isinstance(key, str) else json.dumps(key, ensure_ascii=False)


def decode(level: int, data: str) -> Any:
    """Decode the data of a result by its level: 20 JSON, 21 YAML, 22 TOML, others stay text.

    Raise `ResultDecodeError` when the data is malformed, nested too deeply or too large.
    """
    decoder: Union[Callable[[str], Any], None] = {20: load_json, 21: _yaml, 22: _toml}.get(level)
    if decoder is None:
        return data
    try:
        value = decoder(data)
        if level != 20 and _depth_and_size(value, {})[0] > MAX_NESTING:
            raise RecursionError
        return value
    except ResultDecodeError:
        raise
    except RecursionError:
        why = f"nested deeper than {MAX_NESTING} levels"
    except MemoryError:
        why = "too large"
    except Exception as e:  # a YAML tag on a value of another type may raise any exception
        why = (str(e) or type(e).__name__).splitlines()[0][:200]
    raise ResultDecodeError(f"the result has level {level} but is not valid {_NAMES[level]}: {why}") from None


def _yaml(data: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ResultDecodeError("the result is YAML: pip install 'jsclient[yaml]' to have it decoded") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
        """Stops at `MAX_NESTING`: deeper values cost the parser seconds."""

        levels = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.levels += 1
            if self.levels > MAX_NESTING + 1:
                raise RecursionError
            try:
                return super().compose_node(parent, index)
            finally:
                self.levels -= 1

    loader = Loader(data)
    try:
        # Measured before construction, which expands merge keys.
        node = loader.get_single_node()
        if node is None:
            return None
        depth, size = _depth_and_size(node, {})
        if depth > MAX_NESTING:
            raise RecursionError
        if size > max(MAX_EXPANDED_SIZE, 2 * len(data)):
            raise ValueError("its aliases make it too large")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _toml(data: str) -> Any:
    try:
        import tomllib as toml
    except ImportError:
        try:
            import tomli as toml  # type: ignore[no-redef,unused-ignore]
        except ImportError:
            raise ResultDecodeError("the result is TOML: pip install 'jsclient[toml]' to have it decoded") from None
    return toml.loads(data)


def _depth_and_size(value: Any, known: Dict[int, Tuple[int, int]]) -> Tuple[int, int]:
    """Return the depth of a value (or of a node of a YAML document), and its size with aliases expanded."""
    # PyYAML's nodes hold their children, or their text, in `value`.
    inner = value.value if hasattr(value, "start_mark") and hasattr(value, "value") else value
    if isinstance(inner, (str, bytes)):
        return 0, 1 + len(inner)
    if isinstance(inner, Mapping):
        children: List[Any] = [part for pair in inner.items() for part in pair]
    elif isinstance(inner, (list, tuple, set, frozenset)):
        children = list(inner)
        if inner is not value:  # PyYAML holds a mapping as pairs of nodes
            children = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    else:
        return 0, 1
    found = known.get(id(value))
    if found is not None:
        return found
    known[id(value)] = (MAX_NESTING * 10, 1)  # for a value that contains itself
    depth, size = 0, 1
    for child in children:
        deep, large = _depth_and_size(child, known)
        depth, size = max(depth, deep), size + large
    known[id(value)] = (depth + 1, size)
    return known[id(value)]


def _json_depth(text: str) -> int:
    depth = deepest = 0
    for found in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if found[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
