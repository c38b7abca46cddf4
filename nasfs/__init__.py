"""NAS volumes with redirect-on-write snapshots and one-to-one disaster recovery."""

__version__ = "0.1.0"
