"""The start of a VQGAN, under the name that experiments call: it is that of a VQ-VAE.

See :func:`gradbook.vq_vae_training.started`, whose ``halvings`` may be any number.
"""

from gradbook.vq_vae_training import started

__all__ = ["started"]
