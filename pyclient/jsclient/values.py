"""Values of nodes: decoded within bounds, and made into what JSON can hold. Pure.

A node's value may be deeply nested, a few bytes of YAML may stand for gigabytes, and TOML and YAML have dates,
sets, bytes and numbers that JSON does not have.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, Dict, List, Mapping, Tuple, Union

from .errors import Undecodable

#: Lists and objects inside one another, at most. The controllers' own limit is 128.
MAX_NESTING = 100
#: A YAML value with its aliases expanded has at most so many items and characters, or twice its text's length.
MAX_EXPANDED = 4 * 1024 * 1024
#: A whole number with more digits is written as text: Python refuses to print it.
MAX_DIGITS = 4000

_NAMES = {20: "JSON", 21: "YAML", 22: "TOML"}
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[{]|[\]}]")
#: Surrogates cannot be encoded; the others can control a terminal. JSON holds all of them escaped.
_ESCAPED = re.compile("[\ud800-\udfff\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def load_json(text: Union[str, bytes]) -> Any:
    """Reads JSON; a `ValueError` also for text that is nested too deeply."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogatepass")
    if too_deep(text):
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    return json.loads(text)


def too_deep(text: str) -> bool:
    """Whether JSON text is nested deeper than `MAX_NESTING` levels."""
    return text.count("[") + text.count("{") > MAX_NESTING and _json_depth(text) > MAX_NESTING


def dump_json(value: object, indent: Union[int, None] = None, ascii: bool = False) -> str:
    """Writes any value as valid JSON: dates and bytes as text, NaN and infinite numbers as null."""
    text = json.dumps(plain(value), ensure_ascii=ascii, indent=indent, allow_nan=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain(value: Any, finite: bool = True, _depth: int = 0) -> Any:
    """The value as the types of JSON; with `finite` NaN and infinite numbers are `None`."""
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


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    key = plain(key, finite=False)
    return key if isinstance(key, str) else json.dumps(key, ensure_ascii=False)


def decode(level: int, data: str) -> Any:
    """Decodes the text of a result by its level; `Undecodable` says why that cannot be done."""
    decoder: Union[Callable[[str], Any], None] = {20: load_json, 21: _yaml, 22: _toml}.get(level)
    if decoder is None:
        return data
    try:
        value = decoder(data)
        if level != 20 and _depth_and_size(value, {})[0] > MAX_NESTING:
            raise RecursionError
        return value
    except Undecodable:
        raise
    except RecursionError:
        why = f"nested deeper than {MAX_NESTING} levels"
    except MemoryError:
        why = "too large"
    except Exception as e:  # a YAML tag on what does not fit it raises whatever comes
        why = (str(e) or type(e).__name__).splitlines()[0][:200]
    raise Undecodable(f"the result has level {level} but is no {_NAMES[level]} that can be read: {why}") from None


def _yaml(data: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise Undecodable("the result is YAML: pip install 'jsclient[yaml]' to have it decoded") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
        """Stops at the bound: what is far deeper costs the parser seconds."""

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
        # Measured before it is constructed: merge keys are expanded while that is done.
        node = loader.get_single_node()
        if node is None:
            return None
        depth, size = _depth_and_size(node, {})
        if depth > MAX_NESTING:
            raise RecursionError
        if size > max(MAX_EXPANDED, 2 * len(data)):
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
            raise Undecodable("the result is TOML: pip install 'jsclient[toml]' to have it decoded") from None
    return toml.loads(data)


def _depth_and_size(value: Any, known: Dict[int, Tuple[int, int]]) -> Tuple[int, int]:
    """How deep a value (or a node of a YAML document) is nested, and how large it is with its aliases expanded."""
    # PyYAML's nodes hold their children, or their text, in `value`.
    inner = value.value if hasattr(value, "start_mark") and hasattr(value, "value") else value
    if isinstance(inner, (str, bytes)):
        return 0, 1 + len(inner)
    if isinstance(inner, Mapping):
        children: List[Any] = [part for pair in inner.items() for part in pair]
    elif isinstance(inner, (list, tuple, set, frozenset)):
        children = list(inner)
        if inner is not value:  # of a mapping: pairs of nodes
            children = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    else:
        return 0, 1
    found = known.get(id(value))
    if found is not None:
        return found
    known[id(value)] = (MAX_NESTING * 10, 1)  # for one that holds itself
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
