"""The NAS snap scheduler: when snapshots are taken, and which of them stay.

Nothing is here yet: snapshots are taken by command.
"""
