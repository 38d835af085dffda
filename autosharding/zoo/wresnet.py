"""Wide-ResNet in the sizes of Alpa's suite: bottleneck blocks, batch norm in training mode, all float32.

Images are [b, y, x, c] (batch, height, width, channels), kernels [y, x, in, out].
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from autosharding.zoo.layers import cross_entropy, maybe_remat
from autosharding.zoo.model import Model, make_model
from autosharding.zoo.weights import Weight, he_normal, ones, zeros

BLOCKS = {8: (1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # blocks of each stage, by depth
MOMENTUM = 0.9  # of the running statistics


@dataclass(frozen=True, slots=True)
class WideResNet:
    """One size; `batch` (images) is what `build` takes when the user says nothing."""

    depth: int
    channels: int  # of the first stage, before the fourfold widening
    width: int  # factor on the channels of the 3x3 convolutions
    classes: int = 1024
    image: int = 224  # pixels a side
    batch: int = 1536


SIZES = {
    "tiny": WideResNet(8, 8, 2, classes=16, image=32, batch=8),
    "250m": WideResNet(50, 160, 2),
    "500m": WideResNet(50, 224, 2),
    "1b": WideResNet(50, 320, 2),
    "2b": WideResNet(50, 448, 2),
    "4b": WideResNet(50, 640, 2),
    "6.8b": WideResNet(50, 320, 16),
    "13b": WideResNet(101, 320, 16, batch=1520),
}


def strides(c: WideResNet) -> list[int]:
    """Return the stride of every block: the first block of the stages after the first halves the image."""
    return [2 if stage and not i else 1 for stage, n in enumerate(BLOCKS[c.depth]) for i in range(n)]


def block_weights(inputs: int, channels: int, width: int, *, project: bool) -> dict[str, Any]:
    """Return the weights of one bottleneck block from `inputs` to 4 x `channels` channels."""
    middle, outputs = channels * width, 4 * channels
    weights = {
        "conv1": he_normal(1, 1, inputs, channels),
        "norm1": norm_weights(channels),
        "conv2": he_normal(3, 3, channels, middle),
        "norm2": norm_weights(middle),
        "conv3": he_normal(1, 1, middle, outputs),
        "norm3": norm_weights(outputs),
    }
    if project:
        weights |= {"project": he_normal(1, 1, inputs, outputs), "norm": norm_weights(outputs)}
    return weights


def norm_weights(channels: int) -> dict[str, Weight]:
    """Return the weights of a batch norm."""
    return {"scale": ones(channels), "bias": zeros(channels)}


def wresnet_weights(c: WideResNet) -> dict[str, Any]:
    """Return the weights of the whole model."""
    blocks, inputs = [], c.channels
    for stage, n in enumerate(BLOCKS[c.depth]):
        channels = c.channels * 2**stage
        for i in range(n):
            blocks.append(block_weights(inputs, channels, c.width, project=i == 0))
            inputs = 4 * channels
    return {
        "stem": {"conv": he_normal(7, 7, 3, c.channels), "norm": norm_weights(c.channels)},
        "blocks": blocks,
        "head": {"w": Weight((inputs, c.classes), 0.01), "b": zeros(c.classes)},
    }


def running_stats(weights: Any) -> Any:
    """Return the running statistics of every batch norm in a tree of weights, at the same paths."""
    if isinstance(weights, list):
        return [running_stats(child) for child in weights]
    stats = {}
    for name, child in weights.items():
        if name.startswith("norm"):
            shape = child["scale"].shape
            stats[name] = {"mean": zeros(*shape), "variance": ones(*shape)}
        elif isinstance(child, dict | list) and name != "head":
            stats[name] = running_stats(child)
    return stats


def convolve(kernel: jax.Array, x: jax.Array, stride: int = 1) -> jax.Array:
    """Return the convolution of x[b, y, x, in] with kernel[y, x, in, out], padded to size / stride."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(p: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """Return x[b, y, x, c] normalised by the moments of the whole batch, and the new running statistics."""
    mean = jnp.mean(x, axis=(0, 1, 2))
    variance = jnp.maximum(0.0, jnp.mean(jnp.square(x), axis=(0, 1, 2)) - jnp.square(mean))
    new = {
        "mean": MOMENTUM * stats["mean"] + (1 - MOMENTUM) * mean,
        "variance": MOMENTUM * stats["variance"] + (1 - MOMENTUM) * variance,
    }
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * p["scale"]) + p["bias"], new


def bottleneck(p: Any, stats: Any, x: jax.Array, stride: int) -> tuple[jax.Array, Any]:
    """Return one block on x[b, y, x, in], [b, y / stride, x / stride, out], and its running statistics."""
    new = {}
    y, new["norm1"] = batch_norm(p["norm1"], stats["norm1"], convolve(p["conv1"], x))
    y, new["norm2"] = batch_norm(p["norm2"], stats["norm2"], convolve(p["conv2"], jax.nn.relu(y), stride))
    y, new["norm3"] = batch_norm(p["norm3"], stats["norm3"], convolve(p["conv3"], jax.nn.relu(y)))
    if "project" in p:
        x, new["norm"] = batch_norm(p["norm"], stats["norm"], convolve(p["project"], x, stride))
    return jax.nn.relu(x + y), new


def stem(p: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """Return the features [b, y / 4, x / 4, c] of images[b, y, x, 3]: convolution, norm, largest of 3x3."""
    x, new = batch_norm(p["norm"], stats["norm"], convolve(p["conv"], images, 2))
    pooled = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    return pooled, {"norm": new}


def build_wresnet(name: str, c: WideResNet, *, remat: bool) -> Model:
    """Return the train step of one size."""
    weights = wresnet_weights(c)
    first = maybe_remat(stem, remat)
    blocks = {s: maybe_remat(lambda p, stats, x, s=s: bottleneck(p, stats, x, s), remat) for s in (1, 2)}

    def loss(params: Any, stats: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return the mean cross-entropy of the class, in nats, and the running statistics."""
        x, stem_stats = first(params["stem"], stats["stem"], batch["images"])
        new: list[Any] = []
        for i, stride in enumerate(strides(c)):
            with jax.named_scope(f"block{i}"):
                x, block_stats = blocks[stride](params["blocks"][i], stats["blocks"][i], x)
            new.append(block_stats)
        logits = jnp.mean(x, axis=(1, 2)) @ params["head"]["w"] + params["head"]["b"]
        return cross_entropy(logits, batch["labels"]), {"stem": stem_stats, "blocks": new}

    def make_batch(key: jax.Array) -> dict[str, jax.Array]:
        """Return random images, float32[b, y, x, 3], and classes, int32[b]."""
        images, labels = jax.random.split(key)
        return {
            "images": jax.random.normal(images, (c.batch, c.image, c.image, 3), jnp.float32),
            "labels": jax.random.randint(labels, (c.batch,), 0, c.classes, jnp.int32),
        }

    return make_model(name, loss, weights, make_batch, stats=running_stats(weights))
