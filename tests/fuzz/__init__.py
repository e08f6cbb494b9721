"""Crafted input by the thousand: spaces, --set, files of saved networks and of weights from elsewhere.

`python -m tests.fuzz --seconds 600` runs it; see __main__.
"""
