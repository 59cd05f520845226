"""Questions answered from the state: which action, which nodes, which checkpoint, who is to blame.

Nothing here changes the state or emits an effect; that is for `act`. A test reads the sources and holds them
to it.
"""
