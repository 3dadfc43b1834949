"""The causal transformer: a law that sums to 1, the past alone, conditioning, and both samplers."""

import pytest
import torch

from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise
from gradbook.priors import grids
from gradbook.priors.transformer import CausalTransformer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(height=2, width=2, codes=3, dim=8, layers=2, heads=2, prefix=0):
    return CausalTransformer(height, width, codes, dim, layers, heads, generator(), prefix)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


@pytest.mark.parametrize(
    ("height", "width", "layers"), [(1, 1, 1), (2, 2, 2), (2, 3, 1), (3, 2, 2)]
)
def test_probabilities_sum_to_one(stirred, all_grids, height, width, layers):
    built = stirred(model(height, width, layers=layers))
    log_probs = built.log_prob(all_grids(height, width, 3))
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_probs.std() > 0.1 or height == width == 1


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("prefix", [0, 3])
def test_a_position_sees_all_before_it_and_nothing_else(stirred, layers, prefix):
    built = stirred(model(3, 4, layers=layers, prefix=prefix), std=0.4)
    past = torch.ones(12, 12).triu(1).bool()

    def logits(codes):
        return built.logits(
            codes, normal(1, prefix, 8).expand(len(codes), -1, -1) if prefix else None
        )

    for seed in range(3):
        found = grids.influence(logits, integers(3, 4, seed=seed), 3)
        assert (found[~past] == 0).all()
        assert (found[past] > 0).all()


def test_the_logits_are_those_of_an_encoder_of_torch(stirred):
    """The same weights in ``torch.nn.TransformerEncoder``, with its own mask."""
    built = stirred(model(2, 3, prefix=2), std=0.4)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    for block, other in zip(built.blocks, theirs.layers, strict=True):
        pairs = {
            "self_attn.in_proj_weight": block.attention.inward.weight,
            "self_attn.in_proj_bias": block.attention.inward.bias,
            "self_attn.out_proj.weight": block.attention.outward.weight,
            "self_attn.out_proj.bias": block.attention.outward.bias,
        }
        names = {"linear1": "wide", "linear2": "narrow", "norm1": "norm1", "norm2": "norm2"}
        for to, name in names.items():
            for kind in ("weight", "bias"):
                pairs[f"{to}.{kind}"] = getattr(getattr(block, name), kind)
        other.load_state_dict({key: value.detach() for key, value in pairs.items()})
    codes, prefix = integers(4, 2, 3), normal(4, 2, 8)
    rows = [prefix + built.places]
    place = [built.rows[i] + built.columns[j] for i in range(2) for j in range(3)]
    rows.append((built.start[0] + place[0]).expand(4, 1, 8))
    for t in range(5):
        rows.append((built.table[codes.flatten(1)[:, t]] + place[t + 1])[:, None])
    mask = torch.nn.Transformer.generate_square_subsequent_mask(8, dtype=torch.float64)
    out = theirs(torch.cat(rows, 1), mask=mask, is_causal=True)[:, 2:]
    expected = built.head(built.norm(out)).view(4, 2, 3, 3)
    torch.testing.assert_close(built.logits(codes, prefix), expected, rtol=1e-9, atol=1e-9)


def test_conditioning_reaches_every_position_of_its_own_grid(stirred):
    built, codes, prefix = stirred(model(2, 3, prefix=2)), integers(3, 2, 3), normal(3, 2, 8)
    before = built.logits(codes, prefix)
    for p in range(2):
        other = prefix.clone()
        other[1, p, 0] += 1
        change = (built.logits(codes, other) - before).abs().amax(-1)
        assert (change[1] > 0).all()
        assert (change[[0, 2]] == 0).all()
    # The vectors are not a set: each has a place.
    assert not torch.allclose(built.logits(codes, prefix.flip(1)), before)


def test_each_prefix_gives_a_law(stirred, all_grids):
    built, every = stirred(model(prefix=1)), all_grids(2, 2, 3)
    for vector in normal(2, 1, 8):
        log_probs = built.log_prob(every, vector.expand(len(every), 1, 8))
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("prefix", [0, 3])
def test_both_samplers_draw_what_the_noise_picks(stirred, prefix):
    built, g = stirred(model(3, 4, codes=5, prefix=prefix)), noise(40, 3, 4, 5)
    given = (normal(40, prefix, 8),) if prefix else ()
    drawn = built.sample(40, g, *given)
    assert torch.equal(drawn, built.sample_without_cache(40, g, *given))
    assert torch.equal(drawn, gumbel_max(built.logits(drawn, *given).detach(), g))
    assert torch.equal(drawn, built.sample(40, g, *given))
    assert len(drawn.unique()) == 5


def test_a_single_position_can_be_drawn(stirred):
    built, g = stirred(model(1, 1)), noise(30, 1, 1, 3)
    assert torch.equal(built.sample(30, g), built.sample_without_cache(30, g))


def test_sampled_grids_have_the_law(stirred, require_law):
    built = stirred(model(), std=0.4)
    require_law(built.sample, built.log_prob, 2, 2, 3)


def test_the_start_is_of_the_generator_float32_and_nearly_uniform():
    first, second = model(), model()
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.dtype == torch.float32
    logits = model(7, 7, 8, 32).logits(integers(20, 7, 7, count=8))
    assert logits.dtype == torch.float32
    assert 0.02 < logits.std() < 0.5


def test_what_is_added_starts_small_in_deep_models():
    weights = [model(dim=32, layers=n).blocks[0].narrow.weight.std().item() for n in (1, 8)]
    assert weights[0] / weights[1] == pytest.approx(8**0.5, rel=1e-5)


def test_every_weight_matters(stirred):
    built = stirred(model(3, 3, prefix=2), std=0.5)
    built.log_prob(integers(20, 3, 3), normal(20, 2, 8)).sum().backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_an_empty_batch_gives_an_empty_result():
    built, none = model(), torch.empty(0, 2, 2, dtype=torch.int64)
    assert built.logits(none).shape == (0, 2, 2, 3)
    assert built.log_prob(none).shape == (0,)
    no_noise = torch.empty(0, 2, 2, 3)
    assert built.sample(0, no_noise).shape == (0, 2, 2)
    assert built.sample_without_cache(0, no_noise).shape == (0, 2, 2)


CODES, PREFIX = integers(2, 2, 2), torch.zeros(2, 3, 8)
BAD = [
    *(
        (lambda name=name: model(**{name: 0}), f"{name}: must be at least 1")
        for name in ("height", "width", "codes", "dim", "layers")
    ),
    (lambda: model(heads=3), "heads: must divide dim, 8, got 3"),
    (lambda: model(heads=0), "heads: must divide"),
    (lambda: model(prefix=-1), "prefix: must not be negative"),
    (lambda: model().logits(CODES[:, :1]), "codes: must be \\[B, 2, 2\\]"),
    (lambda: model().log_prob(CODES.int()), "codes: must be int64"),
    (lambda: model().log_prob(CODES - 3), "codes: must be from 0 to 2"),
    (lambda: model().log_prob(CODES, PREFIX), "prefix: must be \\(2, 0, 8\\)"),
    (lambda: model(prefix=3).log_prob(CODES), "prefix: must be \\(2, 3, 8\\), is None"),
    (lambda: model(prefix=3).log_prob(CODES, PREFIX[:1]), "prefix: must be"),
    (lambda: model(prefix=3).log_prob(CODES, PREFIX / 0), "prefix: must be finite"),
]
for _sample in (CausalTransformer.sample, CausalTransformer.sample_without_cache):
    BAD += [
        (lambda f=_sample: f(model(), 3, noise(2, 2, 2, 3)), "noise: must be \\(3, 2, 2, 3\\)"),
        (lambda f=_sample: f(model(), 2, noise(2, 2, 2, 3) / 0), "noise: must be finite"),
        (lambda f=_sample: f(model(prefix=1), 2, noise(2, 2, 2, 3)), "prefix: must be"),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
