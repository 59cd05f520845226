"""`kubectl megascale`: status of jobs and commands to them; it uses only the API server."""
