"""The pure core: events in, rows out; no I/O, no clock, no randomness."""
