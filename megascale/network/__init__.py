"""The network as a job sees it: settings of the ranks, and what a placement does to the switches."""
