"""One model looked at: measured, bounded, attacked, explained, and what to do about it.

``audit`` does everything for one model; a study does the ``steps`` one by one and keeps each. The folder is not called
``audit``, since the package's function of that name would hide it.
"""
