"""Damaged and hostile input for everything that is read from a file or a socket.

``damage`` makes the damages, ``formats`` says what is damaged and what reads it, ``child`` reads it under limits in a
process of its own, ``runner`` drives that process and counts. ``corpus`` keeps every finding as data.
"""
