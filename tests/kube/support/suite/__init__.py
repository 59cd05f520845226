"""The environment of the end-to-end suite: cluster (double or real), nodes, operators, jobs."""
