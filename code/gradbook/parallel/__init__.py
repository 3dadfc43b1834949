"""Part IV: threads, processes, and the collectives between them."""
