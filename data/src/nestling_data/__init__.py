"""Data that nestling uses and that is not under its licence: the starter checkpoint, calibration text, benchmark sets.

Each folder beside this file names the licences of what is in it. There is no code here.
"""

__version__ = "0.1.0"
