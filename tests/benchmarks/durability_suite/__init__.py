"""Parts of ``durability.py``: processes that are killed, bits that flip, disks that are full."""
