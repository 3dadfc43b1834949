"""The mathematics of *Gradients Through Everything*, one module per idea."""

from gradbook.claims import argued, claim
from gradbook.devices import device

__all__ = ["argued", "claim", "device"]
