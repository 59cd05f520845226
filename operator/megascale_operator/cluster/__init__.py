"""`megascale cluster`: puts the operator on a cluster, checks it, takes it off again. Wraps kubectl."""
