"""The driver process: runs the core with a gRPC server, a clock, an event log and the job record."""
