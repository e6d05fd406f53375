"""Teacher to (noise, endpoint): making couplings, and the buffer in memory that keeps them."""
