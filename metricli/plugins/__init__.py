"""The built-in doors, one file a kind; torch-free at import, build() imports lazily."""
