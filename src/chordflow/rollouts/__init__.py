"""Environments, paired noise, and episodes as rows.

Imports nothing by itself: a process that only holds environments (`workers`) does without the policies and the seconds
that they take to import.
"""
