"""Test failovers: writable clones of what has arrived, shared and tried, then thrown away."""
