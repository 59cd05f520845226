"""Reading, checking and writing manifests."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from megascale.errors import ManifestError, ManifestIssue
from megascale.job.base import Section, did_you_mean
from megascale.job.changes import said_by, set_field
from megascale.job.describe import Place, expected, find, show, takes_text
from megascale.job.detection import Detection
from megascale.job.document import MAX_BYTES, Document, parse
from megascale.job.document import Path as FieldPath
from megascale.job.faults import Fault
from megascale.job.issues import issues_of
from megascale.job.log_rules import LOG_RULES, LogRule, LogRuleFile
from megascale.job.scalars import TRUTH_ADVICE, RefusedScalarError, read_plain
from megascale.job.schema import API_VERSION, KIND, TrainingJob

S = TypeVar("S", bound=Section)


class _Representer(SafeRepresenter):
    """Puts every text in quotes that `parse` would not read back as that text."""

    def text(self, value: str) -> Any:  # noqa: ANN401
        try:
            plain = read_plain(value) == value
        except RefusedScalarError:
            plain = False
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Representer.add_representer(str, _Representer.text)


def load_job(path: Path, *, changes: Sequence[str] = ()) -> TrainingJob:
    """Read a manifest from a YAML 1.2 or JSON file.

    Args:
        changes: fields that count instead of the file's, such as `spec.steps=500`.

    Raises:
        ManifestError: the file cannot be read, or fields are wrong; every issue names file, line and field.
        InputError: a change cannot be read or names a field that does not exist.
    """
    return parse_job(_read(path), file=str(path), changes=changes)


def parse_job(content: bytes | str, *, file: str = "", changes: Sequence[str] = ()) -> TrainingJob:
    """Read a manifest from its text; `file` is what errors call it.

    Raises:
        ManifestError, InputError: as `load_job`.
    """
    text = content if isinstance(content, str) else _decode(content, file)
    document = parse(text, file, takes_text=takes_text)
    for change in changes:
        set_field(document, change)
    try:
        return _check(document)
    except ManifestError as error:
        raise ManifestError([said_by(issue, changes) for issue in error.issues]) from error


def load_log_rules(path: Path) -> list[LogRule]:
    """Read log rules from a file: a TrainingJob (its `spec.logRules`), `logRules:` with a list, or a list.

    Raises:
        ManifestError: as `load_job`.
    """
    document = parse(_decode(_read(path), str(path)), str(path))
    data = document.data
    if isinstance(data, dict) and data.get("kind") == KIND:
        return _check(document).spec.log_rules
    if isinstance(data, list):
        document.data = {LOG_RULES: data}
        document.lines = {(LOG_RULES, *field): line for field, line in document.lines.items()}
        document.issues = {(LOG_RULES, *field): issue for field, issue in document.issues.items()}
    elif not isinstance(data, dict):
        message = f"got {show(data)}, expected a list of log rules, {LOG_RULES}: with one, or a TrainingJob"
        raise ManifestError([ManifestIssue("file", message, str(path), 1)])
    return _section(LogRuleFile, document).log_rules


def parse_detection(text: str, *, file: str) -> dict[str, Any]:
    """Check a mapping with fields of `spec.detection` and return what it says, without defaults.

    Raises:
        ManifestError: as `load_job`.
    """
    document = parse(text, file)
    _section(Detection, document)
    data: dict[str, Any] = document.data
    return data


def from_mapping(data: Mapping[str, Any], *, file: str = "") -> TrainingJob:
    """Check a manifest that was parsed before, for example a Kubernetes object; its status is ignored.

    Raises:
        ManifestError: fields are wrong; issues have no lines.
    """
    return _check(Document(file, dict(data)))


def with_faults(job: TrainingJob, faults: Sequence[Fault]) -> TrainingJob:
    """The job with more injected faults.

    Raises:
        ManifestError: a fault could never happen in this job.
    """
    data = to_mapping(job)
    data["spec"]["faults"] += [fault.model_dump(by_alias=True) for fault in faults]
    return from_mapping(data)


def to_mapping(job: TrainingJob) -> dict[str, Any]:
    """The resolved manifest as JSON data, defaults and presets filled in; `from_mapping` reads it back."""
    data = job.model_dump(by_alias=True)
    runtime = data["spec"]["runtime"]
    data["spec"]["runtime"] = {name: value for name, value in runtime.items() if value is not None}
    data["spec"]["template"] = job.spec.template.model_dump(by_alias=True, exclude_none=True)
    return data


def resolved_yaml(job: TrainingJob) -> str:
    """`to_mapping` as YAML text."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(to_mapping(job), stream)
    return stream.getvalue()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ManifestError(
            [ManifestIssue("file", f"cannot be read: {error.strerror}", str(path))]
        ) from error


def _decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte {content[error.start]:#04x} is not UTF-8"
        raise ManifestError([ManifestIssue("file", message, file, line, "save the file as UTF-8")]) from error


def _check(document: Document) -> TrainingJob:
    issues = [_for_number(path, issue) for path, issue in document.issues.items()]
    if isinstance(document.data, dict):
        document.data = {name: value for name, value in document.data.items() if name != "status"}
        wrong_kind = _kind_issues(document)
        if wrong_kind:
            raise ManifestError(wrong_kind)
    else:
        message = f"got {show(document.data)}, expected a mapping with apiVersion, kind, metadata and spec"
        raise ManifestError(
            [ManifestIssue("file", message, document.file or None, 1 if document.lines else None)]
        )
    try:
        job = TrainingJob.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        issues += issues_of(error, document)
    if issues:
        raise ManifestError(sorted(issues, key=lambda issue: issue.line or 0))
    return job


def _for_number(path: FieldPath, issue: ManifestIssue) -> ManifestIssue:
    """The issue of a refused scalar; where a number belongs, `yes` is not advised to be true."""
    place = find(path)
    wanted = expected(place) if place else ""
    if issue.hint in TRUTH_ADVICE and wanted.startswith(("a whole number", "a number")):
        return replace(issue, hint=f"expected {wanted}")
    return issue


def _section(model: type[S], document: Document) -> S:
    """A section of the manifest that is a document of its own."""
    issues = list(document.issues.values())
    try:
        found = model.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError([*issues, *issues_of(error, document, Place(model))]) from error
    if issues:
        raise ManifestError(issues)
    return found


def _kind_issues(document: Document) -> list[ManifestIssue]:
    """Issues if the document is another kind of object or of another version; its fields are then not
    checked."""
    issues = []
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        value = document.data.get(name, wanted)
        if value != wanted:
            hint = did_you_mean(str(value), [wanted]) or "this is not a job for megascale"
            message = f"got {show(value)}, expected {wanted}"
            issues.append(
                ManifestIssue(name, message, document.file or None, document.line_of((name,)), hint)
            )
    return issues
