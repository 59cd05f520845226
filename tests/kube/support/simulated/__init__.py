"""Many simulated nodes in one process: they register and send heartbeats, but run no processes for slot pods.

A slot pod bound to one of these nodes is marked Running, and a simulated agent uses the real wire protocol
for it, so that one job of 1,536 slots fits on a workstation. See `python -m simulated --help`.
"""
