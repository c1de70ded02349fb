"""What runs in a job's own process tree: the zygote, the shim above each attempt, and the attempt's runner."""
