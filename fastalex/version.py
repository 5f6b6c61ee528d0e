"""The version: of the package, of what pip installs, and part of the key of what is cached."""

__version__ = "0.1.0"
