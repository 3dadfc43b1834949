"""The start of a VQGAN is that of a VQ-VAE."""

from gradbook import vq_vae_training, vqgan_networks


def test_it_is_the_same_function():
    assert vqgan_networks.started is vq_vae_training.started
