"""The project's own POSIX suite: what a mounted volume answers to system calls, one module a group.

Everything runs through the kernel.  With ``NASFS_POSIX_ROOT=/some/directory`` the same tests run
against another file system (as root), to tell what Linux's own ones do: where ext4 or XFS fails a
test, the test is wrong, or is marked as ours alone.
"""
