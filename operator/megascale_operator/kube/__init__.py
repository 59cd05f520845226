"""A small level-triggered kernel: API client, informers, keyed queue, Lease election, fenced writes."""
