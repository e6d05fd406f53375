"""Results made visible: tables and pictures."""
