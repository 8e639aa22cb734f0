"""Torch objects with flat arguments; they know core and know no spec."""
