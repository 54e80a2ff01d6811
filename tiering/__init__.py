"""Which block lives where, and when it moves."""
