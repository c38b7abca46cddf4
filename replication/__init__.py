"""One-to-one replication of snapshots between two paired nodes, and who is primary.

``frames`` and ``wire`` are the codec, ``session`` the order of messages, ``transport`` TLS over
sockets; ``pair`` introduces two nodes, ``sender`` and ``receiver`` are the ends of a transfer,
``plan`` and ``roles`` decide.  A node is only ever seen through ``endpoint``.  docs/PROTOCOL.md
specifies what travels.
"""
