"""A loopback server that speaks the protocols of quafu-sdk and Quafu-SQC, so that the real clients run against it."""
