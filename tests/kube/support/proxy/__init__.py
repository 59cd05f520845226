"""A proxy that injects faults in front of any API server and logs all requests.

Every client (an operator process, the drivers) has its own listener, so that faults can affect one of them
and the log identifies clients even if the API server has no audit log. See `python -m proxy --help`.
"""
