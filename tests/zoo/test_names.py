import jax
import pytest

from autosharding import zoo
from autosharding.errors import UnknownModel

PUBLISHED = {  # parameters in billions, by name; Alpa's suites, GPT-3 and Llama 3
    "gpt:125m": 0.125,
    "gpt:350m": 0.355,
    "gpt:760m": 0.76,
    "gpt:1.3b": 1.313,
    "gpt:2.6b": 2.65,
    "gpt:6.7b": 6.65,
    "gpt:15b": 15.4,
    "gpt:39b": 39.1,
    "gpt:76b": 76.0,
    "gpt:145b": 145.6,
    "gpt:175b": 174.6,
    "llama:1b": 1.236,
    "llama:8b": 8.03,
    "llama:70b": 70.55,
    "moe:380m": 0.40,
    "moe:690m": 0.70,
    "moe:1.3b": 1.35,
    "moe:2.4b": 2.41,
    "moe:7.1b": 7.1,
    "moe:10b": 10.2,
    "moe:27b": 26.7,
    "moe:70b": 70.4,
    "moe:140b": 139.2,
    "wresnet:250m": 0.25,
    "wresnet:500m": 0.495,
    "wresnet:1b": 1.0,
    "wresnet:2b": 1.96,
    "wresnet:4b": 4.0,
    "wresnet:6.8b": 6.73,
    "wresnet:13b": 12.6,
}


def test_every_published_size_is_checked():
    named = {name for name in zoo.names() if not name.startswith("mlp") and not name.endswith("tiny")}
    assert named == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_match_the_published_size(name):
    assert zoo.build(name).parameters == pytest.approx(PUBLISHED[name] * 1e9, rel=0.025)


def test_parameters_count_the_state():
    model = zoo.build("gpt:125m")
    assert model.parameters == sum(leaf.size for leaf in jax.tree.leaves(model.args[0].params))


def test_llama_counts_are_exact():
    counts = {size: zoo.build(f"llama:{size}").parameters for size in ("1b", "8b", "70b")}
    assert counts == {"1b": 1_235_814_400, "8b": 8_030_261_248, "70b": 70_553_706_496}


def test_mlp_sizes():
    assert zoo.build("mlp:32x6").parameters == 6 * (32 * 32 + 32)
    assert zoo.build("mlp").parameters == zoo.build("mlp:4096x6").parameters


def test_batch_and_sequence_shape_the_batch():
    _, batch = zoo.build("gpt:1.3b", batch=4, sequence=512).args
    assert batch["tokens"].shape == batch["labels"].shape == (4, 512)
    _, images = zoo.build("wresnet:1b", batch=64).args
    assert images["images"].shape == (64, 224, 224, 3)


def test_paths_are_readable():
    state, _ = zoo.build("gpt:125m").args
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert {".params['blocks'][3]['attn']['wq']", ".mu['embed']", ".step"} <= paths


@pytest.mark.parametrize("name", ["bert:large", "gpt:1.4b", "gpt", "mlp:0x3", "mlp:wide", ""])
def test_unknown_names_get_a_paragraph(name):
    with pytest.raises(UnknownModel) as caught:
        zoo.build(name)
    text = str(caught.value)
    assert repr(name) in text
    assert "1.3b" in text
    assert "wresnet" in text
    assert "HIDDENxLAYERS" in text


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("mlp", {"sequence": 128}, "sequence"),
        ("wresnet:1b", {"sequence": 128}, "sequence"),
        ("gpt:125m", {"batch": 0}, "batch"),
    ],
)
def test_options_without_sense_get_a_paragraph(name, options, word):
    with pytest.raises(UnknownModel, match=word):
        zoo.build(name, **options)
