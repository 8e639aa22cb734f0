"""The table on disk and what is wrong with it; pandas, no torch."""
