"""What ranks record about themselves and how it is read: rank records, alerts, metrics."""
