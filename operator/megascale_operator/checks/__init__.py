"""The NodeCheck controller: runs one check pod per node and releases quarantined nodes that pass."""
