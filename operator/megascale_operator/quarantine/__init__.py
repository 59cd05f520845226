"""Care for nodes of the whole cluster: quarantine within bounds, release of only what was set."""
