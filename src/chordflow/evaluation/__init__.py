"""Measures of a few-step policy: curvature, action gap, latency. Never training."""
