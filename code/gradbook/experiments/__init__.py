"""Experiments too long for a page; ``make records`` runs them and keeps what they find."""
