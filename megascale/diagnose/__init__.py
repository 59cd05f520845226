"""Tests of nodes: what a node can tell about itself."""
