"""The TrainingJob manifest: schema, loader, presets."""

from megascale.job.faults import Fault
from megascale.job.inject import parse_inject
from megascale.job.loader import (
    digest,
    from_mapping,
    load_job,
    load_log_rules,
    parse_job,
    resolved_yaml,
    to_mapping,
    with_faults,
)
from megascale.job.schema import JobSpec, TrainingJob

__all__ = [
    "Fault",
    "JobSpec",
    "TrainingJob",
    "digest",
    "from_mapping",
    "load_job",
    "load_log_rules",
    "parse_inject",
    "parse_job",
    "resolved_yaml",
    "to_mapping",
    "with_faults",
]
