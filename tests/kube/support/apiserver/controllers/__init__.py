"""Controllers of a cluster: scheduler, node life cycle, garbage collection, namespaces."""
