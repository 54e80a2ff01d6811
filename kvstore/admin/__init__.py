"""The HTTP endpoint: see a cache, steer it, and ask it why."""
