"""A folder that a robot runs without PyTorch: graphs, preparation as data, a proof of parity."""
