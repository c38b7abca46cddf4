"""The partner's way in: its connections, what they write, and what it may ask."""
