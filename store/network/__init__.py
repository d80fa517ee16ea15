"""HTTP client and time limits of connections, shared by remotes and downloads."""
