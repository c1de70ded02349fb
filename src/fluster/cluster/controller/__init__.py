"""The controller: one process that holds the truth and decides."""
