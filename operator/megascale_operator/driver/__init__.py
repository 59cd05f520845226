"""What a driver needs to live on a cluster: record, nodes, status, orders, certificate, tokens."""
