"""One handler for each event and timer: it updates the state, asks `decide`, and calls `act`."""
