"""The custom resource definitions, generated from pydantic models: `python -m megascale_operator.crd`."""
