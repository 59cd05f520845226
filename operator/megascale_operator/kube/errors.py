"""Errors of requests to an API server.

ApiError (MegascaleError)      the server responded with an error; see `status` and `reason`
  NotFoundError                404
  ConflictError                409: the object was changed in the meantime
    AlreadyExistsError         409 on create
  GoneError                    410: the resourceVersion is too old to continue from
  RefusedError                 400, 403, 422: the same request will be refused again
  OverloadedError              429 or 5xx: a retry may succeed
ApiUnreachableError (UnreachableError)   no response in time; a write may or may not have been applied
NotLeaderError (MegascaleError)          this process does not hold the Lease: nothing was sent
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megascale.errors import MegascaleError, UnreachableError


class ApiError(MegascaleError):
    """The API server refused a request.

    Attributes:
        status: HTTP status.
        reason: `reason` of the server's metav1.Status, such as NotFound; "" if there is none.
        retry_after_s: seconds from the Retry-After header, None if there is none.
    """

    def __init__(
        self, message: str, status: int, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class NotFoundError(ApiError):
    """The object does not exist."""


class ConflictError(ApiError):
    """The object was changed in the meantime, or a precondition does not hold."""


class AlreadyExistsError(ConflictError):
    """An object with that name already exists."""


class GoneError(ApiError):
    """The resourceVersion or the continue token is too old: list again."""


class RefusedError(ApiError):
    """The request is malformed, invalid or forbidden; the same request will be refused again."""


class OverloadedError(ApiError):
    """The server cannot process the request at the moment."""


class ApiUnreachableError(UnreachableError):
    """The API server did not respond in time; a write may or may not have been applied."""


class NotLeaderError(MegascaleError):
    """A write was not sent because this process does not hold the Lease."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: RefusedError,
    403: RefusedError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: RefusedError,
    429: OverloadedError,
}


def error_of(
    operation: str, status: int, body: Mapping[str, Any] | None, retry_after_s: float | None = None
) -> ApiError:
    """Return the exception for an error response.

    Args:
        operation: the request, for the message, such as "GET /api/v1/nodes".
        status: HTTP status.
        body: the metav1.Status in the response, None if there is none.
        retry_after_s: seconds from the Retry-After header.
    """
    reason = str((body or {}).get("reason", ""))
    message = str((body or {}).get("message", "")) or f"the API server returned HTTP {status}"
    kind = _BY_STATUS.get(status, OverloadedError if status >= 500 else ApiError)
    if status == 409 and reason == "AlreadyExists":
        kind = AlreadyExistsError
    if reason in ("Expired", "Gone"):
        kind = GoneError
    return kind(f"{operation}: {message}", status, reason, retry_after_s)
