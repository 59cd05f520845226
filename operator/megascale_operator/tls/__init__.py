"""The CA that signs the drivers' server certificates."""
