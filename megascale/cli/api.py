"""What other packages use of the command line: findings and how they are printed, labels of stages."""

from megascale.cli.doctor import report
from megascale.cli.stages import STAGE_LABELS
from megascale.diagnose.nic import Finding

__all__ = ["STAGE_LABELS", "Finding", "report"]
