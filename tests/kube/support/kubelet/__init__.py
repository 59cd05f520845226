"""A kubelet whose containers are local processes: plays the nodes for the double or a real API server.

It never binds pods. Each container gets mount and process namespaces of its own, so that its paths are what
the pod says; images are ignored, `python` is the interpreter this runs under. See `python -m kubelet --help`.
"""
