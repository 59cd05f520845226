"""Runs a job's driver in a pod: implements the driver's ports with Kubernetes objects."""
