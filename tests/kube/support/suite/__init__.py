"""What the end-to-end suite stands on: a cluster (double or real), nodes, operators, jobs."""
