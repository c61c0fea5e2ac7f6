"""What a client is told when its call is refused or fails: OpenAI's error object and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A call that ends without its answer.

    Args:
      status: of HTTP; below 500 the caller can do something about it.
      message: what was seen, what was expected.
      param: the field at fault.
      headers: to send along, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": "rate_limit_error" if self.status == 429 else kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_field(name: str, reason: str) -> ApiError:
    """A 400 that names a field."""
    return ApiError(400, f"{name}: {reason}", param=name)
