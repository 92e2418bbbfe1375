"""The study: every system of the paper and its controls, by one harness, into tables and plots."""
