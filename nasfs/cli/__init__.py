"""The ``nasfs`` command: words of people in, text or JSON and an exit code out."""
