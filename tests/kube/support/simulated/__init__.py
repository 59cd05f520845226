"""Many nodes in one process: they are registered and beat like others, but their slot pods run no processes.

A slot pod bound to one of these nodes is marked Running, and an agent that speaks the real wire protocol is
played for it, so that one job of 1,536 slots fits on a workstation. See `python -m simulated --help`.
"""
