"""Health tests of nodes, each by itself and in pairs."""
