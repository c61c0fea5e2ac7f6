"""The fields of a JSON body, taken one by one with their types and bounds; nothing is left over."""

from __future__ import annotations

import difflib
import json
from typing import Any

from jaxmath.serve.errors import ApiError, bad_field


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
      ApiError: 400 for anything else.
    """
    try:
        tree = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ApiError(400, f"the body is not JSON: {reason}") from None
    if not isinstance(tree, dict):
        raise ApiError(400, f"the body is {_shown(tree)}; expected a JSON object")
    return tree


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class Fields:
    """What a client sent. A field that is null counts as absent, as in OpenAI's API."""

    def __init__(self, tree: dict[str, Any], where: str = ""):
        self._left = {name: value for name, value in tree.items() if value is not None}
        self._known: list[str] = []
        self._prefix = f"{where}." if where else ""

    def take(self, name: str) -> Any:
        """The value as it came; None where it is absent."""
        self._known.append(name)
        return self._left.pop(name, None)

    def bad(self, name: str, reason: str) -> ApiError:
        return bad_field(self._prefix + name, reason)

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        return self._number(name, default, low, high, (int, float), "a number")

    def whole(self, name: str, default: Any, low: int, high: int) -> Any:
        return self._number(name, default, low, high, (int,), "a whole number")

    def _number(self, name, default, low, high, kinds, what):
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.bad(name, f"expected {what}, got {_shown(value)}")
        if not low <= value <= high:
            raise self.bad(name, f"expected {what} from {low} to {high}, got {_shown(value)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, f"expected true or false, got {_shown(value)}")
        return value

    def text(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else checked_text(self._prefix + name, value)

    def neutral(self, name: str, *values: Any) -> None:
        """A field of OpenAI's that means nothing here unless it has one of these values."""
        value = self.take(name)
        if value is not None and not any(value == v and type(value) is type(v) for v in values):
            shown = " or ".join(json.dumps(v) for v in values)
            cure = f"leave it out or send {shown}" if values else "leave it out"
            raise self.bad(name, f"this server does not support {_shown(value)}; {cure}")

    def finish(self) -> None:
        """Raises ApiError for a field that nobody took."""
        for name in self._left:
            near = difflib.get_close_matches(name, self._known, 1)
            cure = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise self.bad(_shown_name(name), f"this server knows no such field; {cure}")


def checked_text(name: str, value: Any) -> str:
    """`value` if it is text that can be written down: JSON lets half a surrogate pair through."""
    if not isinstance(value, str):
        raise bad_field(name, f"expected text, got {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise bad_field(
            name, f"character {error.start} is half a surrogate pair; send valid Unicode"
        ) from None
    return value


def _shown(value: Any) -> str:
    """A value as JSON, short enough for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"


def _shown_name(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:80]
