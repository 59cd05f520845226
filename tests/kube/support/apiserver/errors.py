"""Errors with the Kubernetes API server's messages, sent as a metav1.Status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Cause:
    """One invalid field."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"

    def to_json(self) -> Json:
        return {"reason": self.reason, "message": self.message, "field": self.field}


@dataclass
class ApiError(Exception):
    """An error response; `code` is the HTTP status, `reason` that of the metav1.Status."""

    code: int
    reason: str
    message: str
    details: Json = field(default_factory=dict)
    retry_after_s: int = 0

    def body(self) -> Json:
        details = dict(self.details)
        if self.retry_after_s:
            details["retryAfterSeconds"] = self.retry_after_s
        status: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        status |= {"message": self.message, "reason": self.reason, "code": self.code}
        return status | ({"details": details} if details else {})


def qualified(plural: str, group: str) -> str:
    return f"{plural}.{group}" if group else plural


def _about(plural: str, group: str, name: str) -> Json:
    return {"name": name, "kind": plural} | ({"group": group} if group else {})


def not_found(plural: str, group: str, name: str) -> ApiError:
    message = f'{qualified(plural, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, _about(plural, group, name))


def already_exists(plural: str, group: str, name: str) -> ApiError:
    message = f'{qualified(plural, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _about(plural, group, name))


def conflict(plural: str, group: str, name: str, why: str = "") -> ApiError:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _about(plural, group, name))


def invalid(kind: str, group: str, name: str, causes: list[Cause]) -> ApiError:
    """Return a 422; `causes` name the fields."""
    parts = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    listed = parts[0] if len(parts) == 1 else "[" + ", ".join(parts) + "]"
    shown = f"{kind}.{group}" if group else kind
    details = _about(kind, group, name) | {"causes": [cause.to_json() for cause in causes]}
    return ApiError(422, "Invalid", f'{shown} "{name}" is invalid: {listed}', details)


def forbidden(plural: str, group: str, name: str, why: str) -> ApiError:
    shown = (
        f'{qualified(plural, group)} "{name}" is forbidden'
        if name
        else f"{qualified(plural, group)} is forbidden"
    )
    return ApiError(
        403, "Forbidden", f"{shown}: {why}", _about(plural, group, name) if name else {"kind": plural}
    )


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def expired(message: str = "The resourceVersion for the provided list is too old.") -> ApiError:
    return ApiError(410, "Expired", message)


def unsupported_media(kind: str, known: list[str]) -> ApiError:
    message = (
        f"the body of the request was in an unknown format - accepted media types include: {', '.join(known)}"
    )
    return ApiError(415, "UnsupportedMediaType", message, {"kind": kind} if kind else {})


def not_implemented(what: str) -> ApiError:
    """Return a 501 for a feature that the double does not have."""
    return ApiError(501, "NotImplemented", f"the API server double does not implement {what}")
