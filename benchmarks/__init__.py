"""Side-by-side timings against the libraries that people use."""
