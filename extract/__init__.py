"""Images to tokens: backbones, taps, dataset sources and the extraction that fills a cache.

Importing this package is cheap; torch and the model libraries are imported when a backbone is loaded.
"""
