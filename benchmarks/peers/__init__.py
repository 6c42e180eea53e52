"""The peers: how each is installed, given its weights, started and spoken to."""
