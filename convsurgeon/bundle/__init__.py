"""Everything a device and its engineer need, in one folder that appears whole or not at all.

`mobile`, the verdict of the mobile providers on a file, stands here and not beside the export because it opens the file
in a session, and sessions are in `timing`.
"""
