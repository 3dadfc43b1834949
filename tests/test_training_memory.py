"""Bytes of model states by recipe, split over devices, and what fits on a card."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook import training_memory as memory
from gradbook.training_memory import model_states, zero_states
from gradbook.transformer_sizes import QWEN_7B, QWEN_72B, parameters

SEVEN, SEVENTY = parameters(QWEN_7B), parameters(QWEN_72B)
RECIPES = {
    "float32 Adam": (memory.FLOAT32_ADAM, 16),
    "mixed Adam": (memory.MIXED_ADAM, 16),
    "mixed Adam, float32 gradients": (memory.MIXED_ADAM_FLOAT32_GRADIENTS, 18),
    "mixed Adam, two gradients": (memory.MIXED_ADAM_TWO_GRADIENTS, 20),
    "16-bit Adam": (memory.PURE_16_BIT_ADAM, 8),
    "8-bit Adam": (memory.eight_bit_adam(), 10 + Fraction(1, 256)),
    "8-bit Adam, small blocks": (memory.eight_bit_adam(256), 10 + Fraction(1, 32)),
    "SGD": (memory.MIXED_SGD, 8),
    "SGD with momentum": (memory.MIXED_SGD_MOMENTUM, 12),
    "frozen": (memory.FROZEN_16_BIT, 2),
    "thirds": ({"weights": Fraction(1, 3), "scales": Fraction(2, 3)}, 1),
}
recipes = st.sampled_from([recipe for recipe, _ in RECIPES.values()])
counts = st.integers(0, 10**12)


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_of_a_parameter(name):
    recipe, total = RECIPES[name]
    assert sum(recipe.values()) == total


@pytest.mark.parametrize(
    ("name", "seven", "seventy"),
    [
        ("mixed Adam", 123.5, 1156.6),
        ("mixed Adam, float32 gradients", 139.0, 1301.2),
        ("mixed Adam, two gradients", 154.4, 1445.8),
    ],
)
def test_gigabytes_of_two_models(name, seven, seventy):
    recipe, _ = RECIPES[name]
    assert round(sum(model_states(SEVEN, recipe).values()) / 1e9, 1) == seven
    assert round(sum(model_states(SEVENTY, recipe).values()) / 1e9, 1) == seventy


def test_four_bits_and_their_scales():
    """64 weights share an 8-bit scale, and 256 scales a float32."""
    block = 64 * 256
    assert block * memory.NF4_BITS == 4 * block + 8 * 256 + 32
    assert float(memory.NF4_BITS) == 4.126953125
    assert model_states(block, memory.FROZEN_4_BIT) == {"frozen weights": block // 2 + 256 + 4}


@given(st.integers(0, 300), st.integers(1, 9))
def test_eight_bit_constants_fill_their_blocks(blocks, block):
    states = model_states(blocks * block, memory.eight_bit_adam(block))
    assert states["block constants"] == 2 * 4 * blocks
    assert states["first moments"] == states["second moments"] == blocks * block


@given(counts, recipes)
def test_states_are_whole_bytes_rounded_up(parameters, recipe):
    states = model_states(parameters, recipe)
    assert states.keys() == recipe.keys()
    for part, size in recipe.items():
        assert type(states[part]) is int
        assert 0 <= states[part] - parameters * size < 1


@given(counts, recipes, st.integers(1, 100))
def test_stage_0_is_a_copy_and_stage_3_the_states_of_a_share(parameters, recipe, devices):
    share = math.ceil(Fraction(parameters, devices))
    assert zero_states(parameters, recipe, 0, devices) == model_states(parameters, recipe)
    assert zero_states(parameters, recipe, 3, devices) == model_states(share, recipe)
    for stage in range(4):
        alone = zero_states(parameters, recipe, stage, 1)
        assert alone == model_states(parameters, recipe)


@pytest.mark.parametrize("devices", [2, 5, 64])
def test_stages_of_the_paper(devices):
    """With Psi parameters: 4 Psi + 12 Psi / d, then 2 Psi + 14 Psi / d, then 16 Psi / d."""
    n = 7 * 64 * 5
    for stage, whole in enumerate((16, 4, 2, 0)):
        states = zero_states(n, memory.MIXED_ADAM, stage, devices)
        assert sum(states.values()) == whole * n + (16 - whole) * n // devices


def test_the_example_of_the_paper():
    """7.5 billion parameters on 64 devices: 120, 31.4, 16.6 and 1.9 gigabytes."""
    found = [
        round(sum(zero_states(7_500_000_000, memory.MIXED_ADAM, stage, 64).values()) / 1e9, 1)
        for stage in range(4)
    ]
    assert found == [120.0, 31.4, 16.6, 1.9]


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize(
    ("recipe", "whole", "split"),
    [(memory.MIXED_ADAM_TWO_GRADIENTS, 4, 16), (memory.MIXED_ADAM_FLOAT32_GRADIENTS, 6, 12)],
)
def test_stage_1_of_megatrons_table(recipe, whole, split, devices):
    states = zero_states(800, recipe, 1, devices)
    assert sum(states.values()) == 800 * whole + 800 * split // devices


def test_frozen_weights_are_split_as_weights():
    assert zero_states(10, memory.FROZEN_16_BIT, 2, 5) == {"frozen weights": 20}
    assert zero_states(10, memory.FROZEN_16_BIT, 3, 5) == {"frozen weights": 4}


def test_the_largest_share_counts():
    assert zero_states(10, memory.MIXED_SGD, 3, 4) == model_states(3, memory.MIXED_SGD)


def test_few_trained_parameters():
    states = memory.efficient_states(1000, 10, memory.MIXED_ADAM)
    assert states.pop("frozen weights") == 2000
    assert states == model_states(10, memory.MIXED_ADAM)
    small = memory.efficient_states(64 * 256, 10, memory.MIXED_ADAM, memory.FROZEN_4_BIT)
    assert small["frozen weights"] == 8192 + 260
    assert memory.efficient_states(0, 7, memory.MIXED_SGD)["frozen weights"] == 0


@given(counts, recipes)
def test_paging_moves_bytes_and_loses_none(parameters, recipe):
    states = model_states(parameters, recipe)
    card, host = memory.paged(states)
    assert card | host == states
    assert host.keys() == {"first moments", "second moments"} & states.keys()


def test_what_is_paged_can_be_chosen():
    states = model_states(3, memory.MIXED_ADAM)
    card, host = memory.paged(states, ("master weights", *memory.MOMENTS))
    assert card == {"weights": 6, "gradients": 6}
    assert sum(host.values()) == 36


def test_room_is_what_is_left_of_a_card():
    states, rest = model_states(10, memory.MIXED_ADAM), {"activations": 30, "buffers": 10}
    assert memory.left(250, states, rest) == 50
    assert memory.left(250) == 250
    assert memory.fits(200, states, rest)
    assert not memory.fits(199, states, rest)
    assert memory.left(199, states, rest) == -1


@pytest.mark.parametrize(("parameters", "devices", "free"), [(SEVEN, 2, 18.2), (SEVENTY, 20, 22.2)])
def test_whole_card_plans(parameters, devices, free):
    states = zero_states(parameters, memory.MIXED_ADAM, 3, devices)
    assert round(memory.left(80 * 10**9, states) / 1e9, 1) == free
    assert memory.fits(80 * 10**9, states)


@given(st.integers(1, 10**11), recipes, st.integers(0, 10**11))
def test_one_parameter_more_would_not_fit(card, recipe, other):
    need = {"activations": other}
    most = memory.largest_model(card, recipe, need)
    assert not memory.fits(card, model_states(most + 1, recipe), need)
    assert most == 0 or memory.fits(card, model_states(most, recipe), need)


def test_the_largest_model_of_a_card():
    assert memory.largest_model(80 * 10**9, memory.MIXED_ADAM) == 5 * 10**9
    assert memory.largest_model(10, memory.MIXED_ADAM, {"activations": 11}) == 0
    # Two halves of a byte take two bytes.
    halves = {"weights": Fraction(1, 2), "scales": Fraction(1, 2)}
    assert memory.largest_model(1, halves) == 0
    assert memory.largest_model(3, halves) == 2


BAD = [
    (lambda: model_states(-1, memory.MIXED_ADAM), "parameters: "),
    (lambda: model_states(1.5, memory.MIXED_ADAM), "parameters: "),
    (lambda: model_states(1, {}), "recipe: "),
    (lambda: model_states(1, {"weights": -2}), "recipe: "),
    (lambda: model_states(1, {"weights": float("nan")}), "recipe: "),
    (lambda: model_states(1, {"weights": math.inf}), "recipe: "),
    (lambda: zero_states(1, memory.MIXED_ADAM, 4, 2), "stage: "),
    (lambda: zero_states(1, memory.MIXED_ADAM, -1, 2), "stage: "),
    (lambda: zero_states(1, memory.MIXED_ADAM, 1, 0), "devices: "),
    (lambda: memory.eight_bit_adam(0), "block: "),
    (lambda: memory.efficient_states(1, 1, memory.MIXED_ADAM, memory.MIXED_SGD), "base: shares"),
    (lambda: memory.efficient_states(-1, 1, memory.MIXED_ADAM), "parameters: "),
    (lambda: memory.left(0, {}), "card_bytes: "),
    (lambda: memory.fits(-5, {}), "card_bytes: "),
    (lambda: memory.largest_model(0, memory.MIXED_ADAM), "card_bytes: "),
    (lambda: memory.largest_model(9, {"weights": 0}), "recipe: must have bytes"),
    (lambda: memory.largest_model(9, {}), "recipe: must have parts"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
