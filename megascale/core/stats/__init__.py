"""Statistics of training runs: stragglers, loss and gradient-norm spikes, MFU trend."""
