"""Counts of the family of LoRA: published ones, and those of the library and of our layers."""

import copy

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradbook.peft import lora_sizes
from gradbook.peft.injection import inject
from gradbook.peft.lora import LoRALinear
from gradbook.peft.selection import named
from gradbook.transformer_sizes import QWEN_7B, Shape, terms

# Its matrices of attention are those of our shapes, whatever stands around them.
GPT3 = Shape(50_257, 12_288, 96, 96, 96, 49_152)
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
MEASURES = (
    lora_sizes.lora_parameters,
    lora_sizes.dora_parameters,
    lora_sizes.adalora_parameters,
)


@pytest.mark.parametrize(
    ("shape", "names", "rank", "expected"),
    [
        (GPT3, "qv", 1, 4_718_592),
        (GPT3, "qv", 4, 18_874_368),
        (GPT3, "qv", 8, 37_748_736),
        (QWEN_7B, "qv", 8, 4_194_304),
        (QWEN_7B, LINEAR, 64, 159_907_840),
    ],
)
def test_published_counts_of_decoders(shape, names, rank, expected):
    matrices = lora_sizes.decoder_matrices(shape, names)
    assert lora_sizes.lora_parameters(matrices, rank) == expected


@settings(max_examples=20)
@given(st.sampled_from(LINEAR), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_matrices_of_a_decoder_have_as_many_numbers_as_its_terms(name, groups, layers, inner):
    shape = Shape(10, 4 * 3 * groups, layers, 3 * groups, groups, inner)
    matrices = lora_sizes.decoder_matrices(shape, [name])
    assert len(matrices) == layers
    assert sum(out * inputs for out, inputs in matrices) == terms(shape)[name]


def meta(build, config):
    with torch.device("meta"):
        return build(config)


C_ATTN = r".*\.c_attn"
GPT2_LINEAR = r".*\.(c_attn|c_proj|c_fc)"


@pytest.mark.parametrize(
    ("measure", "pattern", "rank", "expected"),
    [
        (lora_sizes.lora_parameters, C_ATTN, 8, 294_912),
        (lora_sizes.lora_parameters, GPT2_LINEAR, 8, 1_179_648),
        (lora_sizes.dora_parameters, C_ATTN, 8, 322_560),
        (lora_sizes.adalora_parameters, C_ATTN, 12, 442_512),
    ],
)
def test_counts_of_gpt2(measure, pattern, rank, expected):
    model = meta(transformers.GPT2LMHeadModel, transformers.GPT2Config())
    assert measure(lora_sizes.model_matrices(model, named(pattern)), rank) == expected


def test_counts_of_minilm_and_of_bert_base():
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    mini = meta(transformers.BertModel, transformers.BertConfig(**sizes))
    base = meta(transformers.BertModel, transformers.BertConfig())
    pair, every = r".*self\.(query|value)", r"encoder\..*(query|key|value|dense)"
    assert lora_sizes.lora_parameters(lora_sizes.model_matrices(mini, named(pair)), 6) == 55_296
    assert len(lora_sizes.model_matrices(mini, named(every))) == 36
    assert lora_sizes.lora_parameters(lora_sizes.model_matrices(mini, named(every)), 1) == 41_472
    assert lora_sizes.lora_parameters(lora_sizes.model_matrices(base, named(pair)), 8) == 294_912


CONFIGS = [
    (lora_sizes.lora_parameters, peft.LoraConfig, {"r": 3}),
    (lora_sizes.dora_parameters, peft.LoraConfig, {"r": 3, "use_dora": True}),
    (
        lora_sizes.adalora_parameters,
        peft.AdaLoraConfig,
        {"init_r": 3, "target_r": 2, "total_step": 9},
    ),
]


@pytest.mark.parametrize(("measure", "config", "options"), CONFIGS)
def test_counts_are_the_librarys(measure, config, options, tiny_gpt2):
    where = named(GPT2_LINEAR)
    targets = ["c_attn", "c_proj", "c_fc"]
    settled = config(target_modules=targets, fan_in_fan_out=True, **options)
    theirs = peft.get_peft_model(copy.deepcopy(tiny_gpt2), settled)
    ours = measure(lora_sizes.model_matrices(tiny_gpt2, where), 3)
    # AdaLoRA's "ranknum" is a count that the library may flag as trainable; nothing trains it.
    trained = [
        parameter.numel()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad and "ranknum" not in name
    ]
    assert ours == sum(trained)


def test_grouped_queries_are_counted_as_in_the_model():
    config = transformers.LlamaConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = meta(transformers.LlamaForCausalLM, config)
    shape = Shape(17, 16, 2, 4, 2, 24)
    found = lora_sizes.model_matrices(model, named(r".*_proj"))
    assert sorted(found) == sorted(lora_sizes.decoder_matrices(shape, LINEAR))
    done = inject(model, named(r".*_proj"), lambda layer: LoRALinear(layer, 3, 1.0))
    assert done.report.trainable == lora_sizes.lora_parameters(found, 3)


def test_a_layer_that_stands_in_two_places_counts_once():
    layer = nn.Linear(3, 2)
    model = nn.ModuleDict({"one": layer, "two": layer, "three": nn.Linear(4, 5)})
    assert lora_sizes.model_matrices(model, named(".*")) == [(2, 3), (5, 4)]


@pytest.mark.parametrize("measure", MEASURES)
def test_shapes_may_come_once(measure):
    assert measure(iter([(2, 3), (4, 5)]), 2) == measure([(2, 3), (4, 5)], 2)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("shapes", "rank", "message"),
    [
        ([], 1, "shapes: must be at least one"),
        ([(2, 3, 4)], 1, "shapes: must be pairs"),
        ([(2, 0)], 1, "shapes: in: "),
        ([(2.0, 3)], 1, "shapes: out: "),
        ([(2, 3)], 0, "rank: "),
        ([(9, 8), (2, 3)], 3, "rank: must be at most 2"),
    ],
)
def test_bad_shapes_are_refused(measure, shapes, rank, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        measure(shapes, rank)


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        (QWEN_7B, [], "names: "),
        (QWEN_7B, ["q", "q"], "names: "),
        (QWEN_7B, ["embedding"], "names: "),
        (QWEN_7B._replace(layers=0), ["q"], "shape.layers: "),
        (QWEN_7B._replace(heads=5), ["q"], "shape.heads: "),
    ],
)
def test_bad_decoders_are_refused(shape, names, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        lora_sizes.decoder_matrices(shape, names)


def test_layers_that_are_not_linear_are_refused(plain):
    with pytest.raises(ValueError, match=r"^layer: must be linear"):
        lora_sizes.model_matrices(plain, named("embeddings"))
    with pytest.raises(ValueError, match=r"^where: "):
        lora_sizes.model_matrices(plain, named("nothing"))
