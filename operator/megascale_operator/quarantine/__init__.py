"""Quarantine of nodes: annotation, cordon and taint, limited in number, and their release."""
