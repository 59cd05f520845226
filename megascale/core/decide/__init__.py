"""Questions answered from the state: which action, which nodes, which checkpoint, who is to blame."""
