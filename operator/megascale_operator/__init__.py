"""The Kubernetes operator: `TrainingJob` and `NodeCheck` objects become pods, node care and conditions."""
