"""Shared by every test: one place for the caches, and few threads on small machines."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
