"""One handler per event: it updates the state, asks `decide`, and acts."""
