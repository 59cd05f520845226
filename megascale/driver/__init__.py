"""The shell around the core: gRPC, clock, event log, job record, effects."""
