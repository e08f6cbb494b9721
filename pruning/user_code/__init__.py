"""The user's own code: functions by `path/to/file.py:function`, and methods of packages by entry points."""
