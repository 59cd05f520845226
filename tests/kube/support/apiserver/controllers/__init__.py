"""The few controllers that a cluster brings: scheduler, node life cycle, garbage collection, namespaces."""
