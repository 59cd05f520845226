"""A proxy that injects faults in front of any API server, and writes down who sent what.

Every client (an operator process, the drivers) gets a listener of its own, so that faults can hit one of them
and the trail tells them apart even where the API server keeps no audit log. See `python -m proxy --help`.
"""
