"""Who provides machines: one protocol, and the backends that follow it."""
