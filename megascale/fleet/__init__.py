"""Fleets supply a driver with nodes: local processes here, Kubernetes pods in the operator."""
