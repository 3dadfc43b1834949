"""AdapterDrop: without its lowest adapters a model is one that never had them."""

import pytest
import torch
import transformers
from scipy import stats
from torch import nn

from gradbook.peft import adapter_drop, adapters
from gradbook.peft.fusion import fuse
from gradbook.peft.selection import named

LAYERS, WIDTH, SIZE = 4, 8, 3
PLACEMENTS = {
    "houlsby": (adapters.houlsby, ("attention", "feed_forward"), 2),
    "pfeiffer": (adapters.pfeiffer, ("feed_forward",), 1),
    "parallel": (adapters.parallel, ("feed_forward",), 1),
}
DEFAULTS = {
    "attention": adapters.ENDS_ATTENTION,
    "feed_forward": adapters.ENDS_FEED_FORWARD,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def bert():
    config = transformers.BertConfig(
        vocab_size=17,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.BertModel(config).double().eval()


def randomize(model):
    draws = generator(5)
    with torch.no_grad():
        for adapter in adapters.adapters_of(model):
            for parameter in adapter.parameters():
                parameter.normal_(generator=draws)


def from_layer(where, first):
    """The same places, in the layers from the given one."""
    return lambda name, module: where(name, module) and int(name.split(".")[2]) >= first


def hidden(model, ids):
    return model(ids).last_hidden_state


def flags(model):
    kinds = (adapters.Serial, adapters.Parallel)
    return [m.passed_over for m in model.modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("n", range(LAYERS + 1))
def test_dropped_is_as_if_injected_only_above(name, n, bert, ids):
    place, roles, per_block = PLACEMENTS[name]
    untouched = hidden(bert, ids)
    injection = place(bert, SIZE, generator())
    randomize(bert)
    kept = adapters.adapters_of(bert)
    everything = hidden(bert, ids)
    with adapter_drop.dropped(bert, n):
        without = hidden(bert, ids)
    assert torch.equal(hidden(bert, ids), everything)
    injection.undo()
    if n == LAYERS:
        assert torch.equal(without, untouched)
        return
    whole = adapters.IS_FEED_FORWARD_OUTPUT if name == "parallel" else None
    places = {role: from_layer(whole or DEFAULTS[role], n) for role in roles}
    place(bert, SIZE, generator(), **places)
    above = adapters.adapters_of(bert)
    assert len(above) == per_block * (LAYERS - n)
    for new, old in zip(above, kept[per_block * n :], strict=True):
        new.load_state_dict(old.state_dict())
    assert torch.equal(without, hidden(bert, ids))
    assert torch.equal(without, everything) == (n == 0)


def test_no_gradient_is_computed_below_the_first_adapter_that_runs(bert, ids):
    adapters.pfeiffer(bert, SIZE, generator())
    with adapter_drop.dropped(bert, 2):
        states = bert(ids, output_hidden_states=True).hidden_states
        assert [h.requires_grad for h in states] == [False, False, False, True, True]
        states[-1].square().sum().backward()
    trained = [a.up.grad is not None for a in adapters.adapters_of(bert)]
    assert trained == [False, False, True, True]


def test_all_is_restored_after_an_exception(bert):
    adapters.houlsby(bert, SIZE, generator())
    seen = []

    def fail():
        with adapter_drop.dropped(bert, 3):
            seen.extend(flags(bert))
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert seen == [True] * 6 + [False] * 2
    assert flags(bert) == [False] * 8


def test_inner_blocks_count_alone_and_outer_ones_come_back(bert):
    adapters.pfeiffer(bert, SIZE, generator())
    with adapter_drop.dropped(bert, 3):
        with adapter_drop.dropped(bert, 1):
            assert flags(bert) == [True, False, False, False]
        assert flags(bert) == [True, True, True, False]
        with adapter_drop.dropped(bert, 0):
            assert flags(bert) == [False] * 4
        assert flags(bert) == [True, True, True, False]
    assert flags(bert) == [False] * 4


def test_layers_count_from_the_models_first_not_from_the_first_with_an_adapter(bert, ids):
    adapters.pfeiffer(bert, SIZE, generator(), from_layer(adapters.ENDS_FEED_FORWARD, 2))
    randomize(bert)
    everything = hidden(bert, ids)
    with adapter_drop.dropped(bert, 2):
        assert torch.equal(hidden(bert, ids), everything)
    with adapter_drop.dropped(bert, 3):
        assert flags(bert) == [True, False]
        assert not torch.equal(hidden(bert, ids), everything)


def test_fusions_and_stacked_adapters_are_passed_over_too(bert, ids):
    untouched = hidden(bert, ids)
    adapters.pfeiffer(bert, SIZE, generator())
    bank = adapters.adapters_of(bert)
    adapters.pfeiffer(bert, SIZE, generator(1))
    with adapter_drop.dropped(bert, LAYERS):
        assert torch.equal(hidden(bert, ids), untouched)
    fuse(bert, [bank, bank], generator(2))
    with adapter_drop.dropped(bert, LAYERS):
        assert torch.equal(hidden(bert, ids), untouched)


def test_gpt2_and_the_plain_transformer_have_numbered_layers_too(tiny_gpt2, plain, ids):
    for model, where in ((tiny_gpt2, named(r".*mlp\.c_proj")), (plain, DEFAULTS["feed_forward"])):
        adapters.pfeiffer(model, SIZE, generator(), where)
        with adapter_drop.dropped(model, 1):
            model(ids)
            assert flags(model) == [True, False]


def test_the_drawn_number_is_uniform_below_the_number_of_layers():
    draws, g = 6000, generator()
    seen = torch.tensor([adapter_drop.drawn_layers(6, g) for _ in range(draws)]).bincount()
    assert len(seen) == 6
    assert stats.chisquare(seen.numpy()).pvalue > stats.norm.sf(4.5)


def test_the_drawn_number_is_the_generators():
    first, second = (
        [adapter_drop.drawn_layers(12, g) for _ in range(9)] for g in map(generator, (3, 3))
    )
    state = torch.random.get_rng_state()
    with torch.device("meta"):
        third = [adapter_drop.drawn_layers(12, g) for g in [generator(3)] for _ in range(9)]
    assert first == second == third
    assert torch.equal(torch.random.get_rng_state(), state)
    assert adapter_drop.drawn_layers(1, generator()) == 0


def enter(model, layers):
    with adapter_drop.dropped(model, layers):
        pass


@pytest.mark.parametrize(
    ("layers", "message"), [(-1, "layers: "), (5, "layers: must be from 0 to 4")]
)
def test_numbers_of_layers_out_of_range_are_refused(layers, message, bert):
    adapters.pfeiffer(bert, SIZE, generator())
    with pytest.raises(ValueError, match=f"^{message}"):
        enter(bert, layers)
    assert flags(bert) == [False] * 4


def unnumbered():
    model = nn.ModuleDict({"dense": nn.Linear(2, 2)})
    adapters.pfeiffer(model, 1, generator(), named("dense"))
    return model


BAD = [
    (lambda: enter(nn.Linear(2, 2), 0), "model: has no adapters"),
    (lambda: enter(unnumbered(), 0), "model: no number in the name"),
    (lambda: adapter_drop.drawn_layers(0, generator()), "layers: must be positive"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
