"""Shares and accounts: told to the servers, sent to the partner, staged, merged, taken back."""
