"""What can keep the one-machine stack from starting; each message names the way out."""

from __future__ import annotations


class StandaloneError(Exception):
    """A set-up or a service cannot go on; the text is meant for the person at the terminal."""


class ServiceNotFound(StandaloneError):
    """No program for a needed service was found on this machine."""


class ServiceFailed(StandaloneError):
    """A service was found, but did not start or stopped by itself."""
