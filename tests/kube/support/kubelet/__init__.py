"""A kubelet whose containers are local processes: provides nodes for the double or a real API server.

It does not schedule pods. Each container has its own mount and process namespaces and so the paths that
the pod declares. Images are ignored; `python` is the kubelet's own interpreter. See
`python -m kubelet --help`.
"""
