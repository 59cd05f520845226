"""The reconciliation of TrainingJobs as pure functions: (spec, observed objects, now) -> plan."""
