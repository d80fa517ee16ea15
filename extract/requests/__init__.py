"""Requests of an extraction: model, dataset and the features to cache."""
