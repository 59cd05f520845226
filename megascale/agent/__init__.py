"""The node agent: starts and watches the ranks of a node and reports to the driver over one gRPC stream."""
