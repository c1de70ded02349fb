"""The Docker Engine of this machine: spoken to over its socket, without a library of its own."""
