"""Shares and identities as data: what a volume is exported as, and to whom its files belong.

Nothing is here yet: volumes are mounted and replicated, not yet exported.
"""
