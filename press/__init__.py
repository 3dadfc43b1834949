"""The press: what turns hand-written chapters into a checked book."""
