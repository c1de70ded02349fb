"""How the parts of a cluster talk: Connect over HTTP."""
