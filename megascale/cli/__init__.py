"""The command line: `megascale <noun> [verb]`."""
