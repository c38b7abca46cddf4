"""The node: configuration, durable state, the daemon and its children, the API.

Only this package and ``nasfs.cli`` know the engine, the mount and replication at once.
"""
