"""What the core knows: the job record, what agents reported, open incidents, the goodput ledger."""
