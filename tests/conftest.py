"""Hypothesis times no example: on a busy machine a deadline measures the neighbours."""

from hypothesis import settings

settings.register_profile("book", deadline=None)
settings.load_profile("book")
