"""The worker daemon: runs attempts on one machine and tells the controller about them."""
