"""Snapshot policies in the daemon: when they run, what they take, what of it stays."""
