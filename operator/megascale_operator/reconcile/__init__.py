"""What a job needs, as pure functions: (spec, observed objects, now) -> actions."""
