"""A double of the Kubernetes API server with exactly the resources and verbs that operator and tests use.

It responds 501 to unsupported requests, so that no test passes by a missing feature. Objects are stored in
memory. Start it with `python -m apiserver --port 0 --dir DIR`; DIR then holds `kubeconfig` and `audit.jsonl`.
"""
