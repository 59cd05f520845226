"""Where nodes come from: local processes here, Kubernetes pods in the operator, simulated nodes in sim."""
