"""The processing of a custom resource's schema by an API server: pruning, defaults, validation, CEL rules.

compiled = CompiledSchema(version["schema"]["openAPIV3Schema"])
obj, unknown = compiled.prune(obj)
obj = compiled.default(obj)
violations = compiled.validate(obj, old)
"""

from .compiled import CompiledSchema
from .violation import Violation

__all__ = ["CompiledSchema", "Violation"]
