"""A double of the Kubernetes API server, for exactly the resources and verbs that operator and tests use.

What it does not know it answers with 501, so that a test can never pass by a silent shortcut. Objects live in
memory. Start it with `python -m apiserver --port 0 --dir DIR`; DIR then holds `kubeconfig` and `audit.jsonl`.
"""
