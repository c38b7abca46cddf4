"""The mount process: a volume as the kernel sees it through FUSE.

- ``tree``: what a request may read: the live view, a snapshot's view
- ``snapdir``: `.snapshots/NAME/` and which tree an inode number belongs to
- ``operations``: the handlers of the kernel's requests
- ``commit``: the gate for changes and the group commit
- ``control``: the control socket, both of its ends
- ``mountpoint``: what the kernel knows of mounts; checking, detaching, waiting for the end
- ``mount``: the process itself: `run_mount`, `mount_in_background`, `unmount`

Changes run on the event loop without an ``await`` in their middle, so a request is either
wholly before or wholly after a commit.  Only what waits for the disk runs in threads.
"""
