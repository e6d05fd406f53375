"""Environments, paired noise, and episodes as rows."""
