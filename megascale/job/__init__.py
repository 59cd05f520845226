"""The TrainingJob manifest: schema, loader, presets."""

from megascale.job.faults import Fault
from megascale.job.inject import parse_inject
from megascale.job.loader import (
    from_mapping,
    load_job,
    load_log_rules,
    parse_job,
    resolved_yaml,
    to_mapping,
    with_faults,
)
from megascale.job.revision import canonical_json, from_json, read_revision, revision_of
from megascale.job.schema import JobSpec, TrainingJob

__all__ = [
    "Fault",
    "JobSpec",
    "TrainingJob",
    "canonical_json",
    "from_json",
    "from_mapping",
    "load_job",
    "load_log_rules",
    "parse_inject",
    "parse_job",
    "read_revision",
    "resolved_yaml",
    "revision_of",
    "to_mapping",
    "with_faults",
]
