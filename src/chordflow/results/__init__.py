"""The schema of what is measured, and its statistics."""
