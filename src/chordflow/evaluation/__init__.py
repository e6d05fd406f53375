"""What is measured of a policy: curvature, action gap, step sweep, latency; never training."""
