"""The `skerry` command: an HTTP client of the API, made from KINDS like the API itself."""
