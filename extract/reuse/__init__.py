"""Rows of other caches that a run takes over instead of computing them: same backbone, same settings, same image."""
