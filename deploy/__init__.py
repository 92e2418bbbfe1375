"""What runs the service for real: its image, compose file, chart, dashboards and rules."""
