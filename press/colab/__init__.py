"""Notebooks for Colab: the chapters with their MyST resolved to Markdown that any notebook shows."""
