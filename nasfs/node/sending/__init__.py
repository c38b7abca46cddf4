"""Sending groups to the partner: when, how fast, by which process, and how that stands."""
