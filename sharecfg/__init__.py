"""Shares and identities as data: what a volume is exported as, and to whom its files belong.

So far: what Samba is told of a volume's snapshots.
"""
