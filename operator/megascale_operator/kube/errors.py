"""What an API server can answer, as exceptions.

ApiError (MegascaleError)      the server answered, and not with success; `status` and `reason` say how
  NotFoundError                404
  ConflictError                409: somebody else wrote first
    AlreadyExistsError         409 on create
  GoneError                    410: the resourceVersion is too old to continue from
  RefusedError                 400, 403, 422: this request will never be accepted as it is
  OverloadedError              429 or 5xx: later perhaps
ApiUnreachableError (UnreachableError)   no answer in time; a write may or may not have happened
NotLeaderError (MegascaleError)          the Lease is not held (any more): nothing was sent
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megascale.errors import MegascaleError, UnreachableError


class ApiError(MegascaleError):
    """The API server refused a request.

    Attributes:
        status: HTTP status; reason: Kubernetes' own word for it, "" if it gave none.
        retry_after_s: when the server wants to be asked again, None if it did not say.
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
    """The object was written by somebody else in the meantime, or a precondition does not hold."""


class AlreadyExistsError(ConflictError):
    """An object of that name exists."""


class GoneError(ApiError):
    """The resourceVersion or the continue token is too old: list again."""


class RefusedError(ApiError):
    """Malformed, invalid or forbidden: the same request will be refused again."""


class OverloadedError(ApiError):
    """The server cannot do it now."""


class ApiUnreachableError(UnreachableError):
    """The API server did not answer in time; whether a write happened is not known."""


class NotLeaderError(MegascaleError):
    """A write was held back because this process does not hold the Lease, or not long enough any more."""


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
    what: str, status: int, answer: Mapping[str, Any] | None, retry_after_s: float | None = None
) -> ApiError:
    """The exception for an answer; `answer` is the server's metav1.Status if it sent one."""
    reason = str((answer or {}).get("reason", ""))
    message = str((answer or {}).get("message", "")) or f"the API server answered {status}"
    kind = _BY_STATUS.get(status, OverloadedError if status >= 500 else ApiError)
    if status == 409 and reason == "AlreadyExists":
        kind = AlreadyExistsError
    if reason in ("Expired", "Gone"):
        kind = GoneError
    return kind(f"{what}: {message}", status, reason, retry_after_s)
