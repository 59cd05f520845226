"""What the core shares with its shells: events in, effects out, the policy, and their encoding as JSON."""
