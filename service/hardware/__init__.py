"""Everything between a request for hardware and the provider that runs it: jobs, circuits, batches, counts."""
