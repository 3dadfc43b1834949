"""Networks that produce a prompt: counts and outputs of peft's, and what is left of them after."""

import peft
import pytest
import torch
from peft.tuners.p_tuning import PromptEncoder

from gradbook.peft import prompt_encoders
from gradbook.peft.injection import count
from gradbook.peft.prompts import SoftPrompt

KINDS = {
    "MLP": prompt_encoders.MLPPromptEncoder,
    "LSTM": prompt_encoders.LSTMPromptEncoder,
}
each_kind = pytest.mark.parametrize("kind", list(KINDS))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def theirs_of(kind, length, width, hidden):
    config = peft.PromptEncoderConfig(
        encoder_reparameterization_type=kind,
        encoder_hidden_size=hidden,
        encoder_dropout=0.0,
        num_virtual_tokens=length,
        token_dim=width,
        num_transformer_submodules=1,
    )
    return PromptEncoder(config).double()


@pytest.mark.parametrize(("kind", "expected"), [("MLP", 229_376), ("LSTM", 1_593_344)])
def test_counts_at_the_size_of_gpt2_are_those_of_peft(kind, expected):
    encoder = KINDS[kind](20, 768, 128, generator())
    assert count(encoder) == (expected, expected)
    assert count(theirs_of(kind, 20, 768, 128))[0] == expected


@each_kind
def test_outputs_and_gradients_are_those_of_peft_on_the_same_weights(kind):
    ours = KINDS[kind](5, 6, 4, generator(), torch.float64)
    theirs = theirs_of(kind, 5, 6, 4)
    names = {"inputs": "embedding.weight", "lstm": "lstm_head", "mlp": "mlp_head"}
    state = {
        names[key.split(".")[0]] + key[len(key.split(".")[0]) :]: value
        for key, value in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    weights = torch.randn(5, 6, generator=generator(1), dtype=torch.float64)
    prompt, expected = ours(), theirs(torch.arange(5)[None])[0]
    torch.testing.assert_close(prompt, expected, rtol=1e-12, atol=1e-12)
    (prompt * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(
        ours.inputs.grad, theirs.embedding.weight.grad, rtol=1e-12, atol=1e-12
    )


def reaches(encoder):
    """Says which inputs each vector of the prompt depends on, [p, p]."""
    rows = [
        torch.autograd.grad(row.sum(), encoder.inputs, retain_graph=True)[0] for row in encoder()
    ]
    return torch.stack(rows).abs().sum(-1) > 0


def test_the_lstm_ties_all_vectors_together_and_the_mlp_none():
    ours = {kind: make(5, 6, 8, generator(), torch.float64) for kind, make in KINDS.items()}
    assert reaches(ours["LSTM"]).all()
    assert torch.equal(reaches(ours["MLP"]), torch.eye(5, dtype=torch.bool))


@each_kind
def test_the_folded_vectors_are_the_prompt_and_stay_when_the_network_changes(kind):
    encoder = KINDS[kind](5, 6, 4, generator())
    before = encoder().detach().clone()
    folded = encoder.folded()
    assert not folded.requires_grad
    assert torch.equal(SoftPrompt(folded)(), before)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    assert torch.equal(folded, before)
    assert not torch.equal(encoder(), before)


@each_kind
def test_all_start_values_come_from_the_generator_and_are_in_their_bounds(kind):
    state = torch.get_rng_state()
    one, two, other = (KINDS[kind](9, 16, 25, generator(s), torch.float64) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b, c in zip(
        one.named_parameters(), two.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert not (a == c).any()
        if name.startswith("lstm"):
            assert 0.1 < a.abs().max() <= 0.2, name
    first = one.mlp[0]
    bound = first.in_features**-0.5
    assert 0.9 * bound < first.weight.abs().max() <= bound
    assert first.bias.abs().max() <= bound
    assert one.inputs.abs().max() > 2


@each_kind
def test_the_type_is_float32_unless_asked_and_draws_are_the_same(kind):
    torch.set_default_dtype(torch.float64)
    try:
        single = KINDS[kind](3, 4, 5, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    double = KINDS[kind](3, 4, 5, generator(), torch.float64)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


@each_kind
def test_the_callers_default_device_does_not_matter(kind):
    with torch.device("meta"):
        encoder = KINDS[kind](3, 4, 5, generator())
    assert torch.equal(encoder(), KINDS[kind](3, 4, 5, generator())())


@each_kind
@pytest.mark.parametrize(
    ("sizes", "message"), [((0, 4, 5), "length"), ((3, 0, 5), "width"), ((3, 4, 0), "hidden")]
)
def test_bad_sizes_are_refused(kind, sizes, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        KINDS[kind](*sizes, generator())
