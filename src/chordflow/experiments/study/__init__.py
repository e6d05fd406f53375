"""Studies: arms trained over seeds within one budget, looked at on the way, and put into one table."""
