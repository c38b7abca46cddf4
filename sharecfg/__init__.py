"""Shares and identities as data: what a volume is exported as, and to whom its files belong.

All of it is pure: files, servers and accounts are the node's business.
"""
