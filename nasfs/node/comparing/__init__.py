"""Comparing both sites' snapshots, from each side's own disks."""
