"""What a model of this shape needs, counted without torch: for programs that size nodes and jobs."""

from megascale.model.inventory import stage_parameter_count
from megascale.model.layout import Layout
from megascale.model.memory import STATE_BYTES
from megascale.model.shape import ModelShape

__all__ = ["STATE_BYTES", "Layout", "ModelShape", "stage_parameter_count"]
