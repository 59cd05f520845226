"""What commands that other packages add to `megascale` use of it: findings, and how they are shown."""

from megascale.cli.doctor import report
from megascale.diagnose.nic import Finding

__all__ = ["Finding", "report"]
