"""Building blocks of level-triggered controllers: API client, informers, work queue, leader election."""
