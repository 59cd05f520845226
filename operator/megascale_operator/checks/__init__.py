"""NodeCheck: health checks of nodes, one pod per node, and the release of nodes that pass."""
