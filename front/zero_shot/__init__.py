"""Zero-shot classification: class names through the text tower of a cache's backbone. Importing this package is cheap.

Extraction knows the text tower and probing the scores; neither imports the other, so this package joins them.
"""
