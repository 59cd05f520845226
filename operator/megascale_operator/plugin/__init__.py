"""`kubectl megascale`: what people ask of a job on a cluster, through the API server alone."""
