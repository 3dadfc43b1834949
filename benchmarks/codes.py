"""Cases of codebooks: the nearest code of a vector, and the sums behind a moving average.

Two roundings may choose different codes where two are equally near, so what is compared is the
squared distance of the chosen code, in float64, vector by vector.
"""

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from benchmarks.timing import Case, Side
from gradbook.codebooks import code_sums
from gradbook.nearest import nearest_code

SEED = 22
VECTORS, CODES, DIMENSION = 16_384, 512, 64


def _normals(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DIMENSION, generator=generator, dtype=torch.float32)


def _vectors() -> Tensor:
    return _normals(VECTORS, SEED)


def _codebook() -> Tensor:
    return _normals(CODES, SEED + 1)


def of_values(values: Tensor) -> Tensor:
    """Squared distances of the vectors from what stands for them."""
    return (_vectors().double() - values.double()).square().sum(1)


def of_indices(indices: Tensor) -> Tensor:
    """Squared distances of the vectors from the codes chosen for them."""
    return of_values(_codebook()[indices])


def of_indices_or_products(result: Tensor) -> Tensor:
    """Squared distances of the chosen codes, or the smallest that the inner products tell."""
    if result.dtype == torch.int64:
        return of_indices(result)
    z2, c2 = (x.double().square().sum(1) for x in (_vectors(), _codebook()))
    return z2 + (c2 - 2 * result.double()).amin(1)


def nearest_case() -> tuple[Side, Side]:
    """The nearest code, against all distances and a search."""
    z, codebook = _vectors(), _codebook()

    def ours() -> Tensor:
        return nearest_code(z, codebook)

    def peer() -> Tensor:
        return torch.cdist(z, codebook).argmin(1)

    return ours, peer


def product_case() -> tuple[Side, Side]:
    """The nearest code, against the matrix product that it cannot do without."""
    z, codebook = _vectors(), _codebook()

    def ours() -> Tensor:
        return nearest_code(z, codebook)

    def peer() -> Tensor:
        return z @ codebook.T

    return ours, peer


def quantize_case() -> tuple[Side, Side]:
    """The vector of the nearest code, against a module in its evaluation mode."""
    z, codebook = _vectors(), _codebook()
    module = VectorQuantize(dim=DIMENSION, codebook_size=CODES).eval()
    module.codebook = codebook

    def ours() -> Tensor:
        return codebook[nearest_code(z, codebook)]

    def peer() -> Tensor:
        with torch.no_grad():
            values, _, _ = module(z[None])
        return values[0]

    return ours, peer


def sums_case() -> tuple[Side, Side]:
    """Counts and sums of the vectors of every code, against a product with one-hot rows."""
    generator = torch.Generator().manual_seed(SEED)
    # Positive vectors: a sum near zero would have no relative error.
    z = torch.rand(VECTORS, DIMENSION, generator=generator, dtype=torch.float32) + 0.5
    indices = torch.randint(CODES, (VECTORS,), generator=generator)

    def ours() -> Tensor:
        counts, sums = code_sums(z, indices, CODES)
        return torch.cat((counts[:, None], sums), 1)

    def peer() -> Tensor:
        rows = torch.zeros(VECTORS, CODES, dtype=z.dtype).scatter_(1, indices[:, None], 1.0)
        return torch.cat((rows.sum(0)[:, None], rows.T @ z), 1)

    return ours, peer


CASES = (
    Case(
        "nearest of 512 codes, 16 384 vectors of length 64, float32",
        "torch.cdist and argmin",
        1e-5,
        nearest_case,
        of_indices,
    ),
    Case(
        "nearest of 512 codes, the same vectors",
        "the matrix product alone",
        1e-5,
        product_case,
        of_indices_or_products,
    ),
    Case(
        "vectors of the nearest of 512 codes, the same vectors",
        "vector_quantize_pytorch.VectorQuantize, eval",
        1e-5,
        quantize_case,
        of_values,
    ),
    Case(
        "counts and sums of 512 codes, 16 384 vectors of length 64",
        "a product with one-hot rows",
        1e-5,
        sums_case,
    ),
)
