"""Readers of what others wrote, fed with bytes that coverage guides; see README.md."""
