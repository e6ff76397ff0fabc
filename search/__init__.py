"""The top floor: drives a sweep from outside (command line, store, search, tracking, queries)."""
