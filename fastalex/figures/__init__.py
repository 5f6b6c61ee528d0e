"""Pictures made from what a run has written."""
