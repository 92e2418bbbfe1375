"""What operators decide while the service runs, kept in Redis and seen by every replica."""
