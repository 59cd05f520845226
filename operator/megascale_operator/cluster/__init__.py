"""`megascale cluster`: installs, checks and uninstalls the operator with kubectl."""
