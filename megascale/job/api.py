"""What a program that makes CRDs and pods of the manifest uses of this package.

The manifest itself, its parts that a pod or a status repeats, and the constants that a schema must name.
"""

from megascale.job.base import (
    Label,
    LabelValue,
    Natural,
    NodeName,
    Problem,
    Section,
    Text,
    refuse,
    repeated,
)
from megascale.job.data import BYTE_VOCAB_SIZE
from megascale.job.describe import Place, explain
from megascale.job.loader import from_mapping, parse_detection
from megascale.job.megatron import VOCAB_MULTIPLE
from megascale.job.presets import PRESETS
from megascale.job.recovery import CAUSES
from megascale.job.schema import MANAGER, JobSpec, TrainingJob
from megascale.job.template import OWN_FOLDERS, OWN_PREFIX, Container, Resources, Toleration

__all__ = [
    "BYTE_VOCAB_SIZE",
    "CAUSES",
    "MANAGER",
    "OWN_FOLDERS",
    "OWN_PREFIX",
    "PRESETS",
    "VOCAB_MULTIPLE",
    "Container",
    "JobSpec",
    "Label",
    "LabelValue",
    "Natural",
    "NodeName",
    "Place",
    "Problem",
    "Resources",
    "Section",
    "Text",
    "Toleration",
    "TrainingJob",
    "explain",
    "from_mapping",
    "parse_detection",
    "refuse",
    "repeated",
]
