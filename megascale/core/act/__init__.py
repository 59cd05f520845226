"""Moves between the states of a job: assemble, launch, stop, recover, swap a node, grow, suspend, finish."""
