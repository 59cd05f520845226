"""The command line: `megascale <noun> [verb]` (contracts 9)."""
