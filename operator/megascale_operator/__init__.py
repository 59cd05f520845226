"""The Kubernetes operator: controllers of `TrainingJob` and `NodeCheck` objects and of node quarantine."""
