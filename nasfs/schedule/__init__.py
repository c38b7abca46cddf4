"""The NAS snap scheduler's decisions: when snapshots are taken, and which of them stay.

Pure: who asks brings the time and the snapshots; who answers for the disk is `nasfs.node`.
docs/scheduling.md tells the rules to people.
"""
