"""What a training step costs, counted by hand from its configuration: FLOPs, parameters, memory.

FLOPs are two for each multiplication that is added up. Backward of a matrix product is two of its size; of
attention, two and a half times forward, since fused kernels compute the scores again. What is not a matrix
product (norms, GELU, softmax) is not counted: it is the gap between a step's rate and that of a product.

Memory is that of one worker: weights, gradients and AdamW's two moments in float32, and what a step holds
until backward. Of samplers, `tats` and `adaptive` are counted. With `shard` a worker has its part of the
first three, and what is gathered for a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

from tats_core.models.mae import MAEConfig
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.report.units import size
from tats_core.sampling import SamplerConfig
from tats_core.sampling.adaptive import AdaptiveConfig
from tats_core.sampling.plackett_luce import visible_count
from tats_core.sampling.tats import NetworkConfig, TATSConfig
from tats_core.training.finetune import FinetuneConfig
from tats_core.training.pretrain import PretrainConfig
from tats_core.training.world import Precision


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: dense TFLOP/s of bfloat16 and of float32, and memory in GB."""

    bf16: float
    fp32: float
    memory: float

    def peak(self, precision: Precision) -> float:
        """FLOP/s in a precision."""
        return 1e12 * (self.bf16 if precision == "bf16" else self.fp32)


GPUS: Final = {
    "a100": Gpu(312, 19.5, 80),
    "h100": Gpu(989, 67, 80),
    "h200": Gpu(989, 67, 141),
}
"""NVIDIA's SXM modules."""


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products with weights, and of attention, forward."""

    products: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: float) -> Work:
        return Work(self.products * times, self.attention * times)

    @property
    def forward(self) -> float:
        return self.products + self.attention

    @property
    def training(self) -> float:
        """Forward and backward."""
        return 3 * self.products + 3.5 * self.attention


def block(tokens: int, width: int, mlp_ratio: float) -> Work:
    """A transformer block: q, k, v, out (4 D^2 a token), the MLP (2 r D^2), and scores and values (2 N D)."""
    return Work(2 * tokens * width**2 * (4 + 2 * mlp_ratio), 4 * tokens**2 * width)


def mae(vit: ViTConfig, config: MAEConfig, clip: ClipConfig, visible: int) -> Work:
    """The masked autoencoder on one clip; the embedding's input needs no gradient."""
    decoded = config.decoded(clip.tokens - visible)
    encoder = block(visible, vit.width, vit.mlp_ratio) * vit.depth
    decoder = block(visible + decoded, config.decoder_width, vit.mlp_ratio) * config.decoder_depth
    ends = Work(
        2 * visible * vit.width * config.decoder_width + 2 * decoded * config.decoder_width * clip.pixels
    )
    embedding = Work(2 * visible * clip.pixels * vit.width * 2 / 3)  # backward is one product, not two
    return encoder + decoder + ends + embedding


def sampler(vit: ViTConfig, config: NetworkConfig, clip: ClipConfig) -> Work:
    """The TATS sampler on one clip."""
    n, w, slices = clip.tokens, config.width, clip.slices
    project = Work(2 * n * vit.width * w * 2 / 3 if w != vit.width else 0.0)
    dense = 3 + 1 + 1 + (1 if config.values == "paper" else 0) + 1 + 2 * config.mlp_ratio
    along = 2 * 2 * n * config.heads * slices * w
    block_work = Work(2 * n * w**2 * dense + along, 4 * n**2 * w)
    return project + block_work * config.depth


def joint_step(recipe: PretrainConfig) -> float:
    """FLOPs of one joint step for one clip: all tokens embedded for the sampler, rollout, MAE, its learning.

    What the sampler's backward recomputes to save memory is not counted.
    """
    vit, clip, policy = recipe.model, recipe.clip, recipe.sampler
    tokenized = 2 * clip.tokens * clip.pixels * vit.width
    learning = 0.0
    if isinstance(policy, TATSConfig):
        work = sampler(vit, policy.network, clip)
        learning = tokenized + work.forward + policy.ppo.epochs * work.training
    elif isinstance(policy, AdaptiveConfig):  # it learns from the draw
        # With the autoencoder, the cube embedding of all tokens learns from it too: forward again, and back.
        embedded = 3 if policy.with_autoencoder else 1
        learning = tokenized * embedded + block(clip.tokens, vit.width, _adaptive_mlp_ratio(policy)).training
    return mae(vit, recipe.mae, clip, visible_count(clip.tokens, policy.mask_ratio)).training + learning


def _adaptive_mlp_ratio(config: AdaptiveConfig) -> int:
    """Of AdaMAE's sampler, a block of the encoder's width or its attention alone."""
    return 4 if config.architecture == "published" else 0


def finetune_step(vit: ViTConfig, clip: ClipConfig) -> float:
    """FLOPs of one fine-tuning step for one clip: all tokens through the encoder."""
    embedding = 2 * 2 * clip.tokens * clip.pixels * vit.width
    return embedding + (block(clip.tokens, vit.width, vit.mlp_ratio) * vit.depth).training


def encode(vit: ViTConfig, clip: ClipConfig) -> float:
    """FLOPs of all tokens of one clip through the encoder, forward alone."""
    embedding = 2 * clip.tokens * clip.pixels * vit.width
    return embedding + (block(clip.tokens, vit.width, vit.mlp_ratio) * vit.depth).forward


# --- parameters ------------------------------------------------------------------------------------------


def block_parameters(width: int, mlp_ratio: float) -> int:
    """Of a transformer block: q, k, v, out (4 D^2 + 4 D), the MLP (2 r D^2 + (r + 1) D), two norms (4 D)."""
    hidden = int(width * mlp_ratio)
    return 4 * width**2 + 2 * hidden * width + hidden + 9 * width


def encoder_parameters(vit: ViTConfig, clip: ClipConfig) -> int:
    """Of the cube embedding, the blocks and the last norm."""
    embedding = (clip.pixels + 1) * vit.width
    return embedding + vit.depth * block_parameters(vit.width, vit.mlp_ratio) + 2 * vit.width


def mae_parameters(vit: ViTConfig, config: MAEConfig, clip: ClipConfig) -> int:
    """Of encoder, decoder, mask token and the layers between and after them."""
    width = config.decoder_width
    between = vit.width * width + (config.global_token and (vit.width + 1) * width)
    ends = between + width + 2 * width + (width + 1) * clip.pixels
    decoder = config.decoder_depth * block_parameters(width, vit.mlp_ratio)
    return encoder_parameters(vit, clip) + decoder + ends


def sampler_parameters(vit: ViTConfig, config: SamplerConfig, clip: ClipConfig) -> int:
    """Of the sampler's network."""
    if isinstance(config, AdaptiveConfig):
        if config.architecture == "light":
            return 4 * vit.width**2 + 7 * vit.width
        # Positions, a block without biases of q, k and v, and the actor.
        return clip.tokens * vit.width + block_parameters(vit.width, 4) - 3 * vit.width + vit.width + 1
    if not isinstance(config, TATSConfig):
        return 0
    network = config.network
    width, hidden = network.width, int(network.width * network.mlp_ratio)
    project = (vit.width + 1) * width if width != vit.width else 0
    # q, k, v; temporal query; temporal key without a bias; temporal value of the paper's form; out.
    attention = 7 * width**2 + 6 * width - (0 if network.values == "paper" else width**2 + width)
    layers = attention + 2 * hidden * width + hidden + 5 * width
    heads = 2 * width + 1
    return project + clip.tokens * width + network.depth * layers + 4 * width + heads


def classifier_parameters(vit: ViTConfig, clip: ClipConfig, classes: int, *, head_norm: bool = True) -> int:
    """Of the encoder, whose last norm gives way to the head's, and the head."""
    norm = 2 * vit.width if head_norm else 0
    return encoder_parameters(vit, clip) - 2 * vit.width + norm + (vit.width + 1) * classes


# --- memory ----------------------------------------------------------------------------------------------

_FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker."""

    weights: int
    gradients: int
    """That are held beside the activations at the step's peak."""
    optimizer: int
    activations: float
    """Of one part of the batch, as it is at the step's peak."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def block_activations(
    tokens: int, width: int, mlp_ratio: float, depth: int, half: bool, again: bool
) -> float:
    """Bytes that `depth` blocks hold of one clip until backward.

    The inputs of both norms stay in float32; the norms' outputs, q, k, v, the attention's result as it is and
    as `out` reads it, and the MLP's hidden layer before and after GELU follow the autocast.

    Args:
        half: bfloat16 (autocast).
        again: gradient checkpointing: the input of each block, and all of one block.
    """
    bytes_each = 2 * _FLOAT + (7 + 2 * mlp_ratio) * (2 if half else _FLOAT)
    each = tokens * width * bytes_each
    return depth * tokens * width * _FLOAT + each if again else depth * each


_OF_REWARD: Final = {"motion": 3, "dynamic": 4}
"""Tensors as large as a clip that its reward needs; others need none that is as large."""


def joint_activations(recipe: PretrainConfig) -> tuple[float, float]:
    """Bytes of one clip in a joint step: before the backward pass, and what is left once that freed them."""
    vit, config, clip = recipe.model, recipe.mae, recipe.clip
    half, again = recipe.precision == "bf16", vit.gradient_checkpointing
    visible = visible_count(clip.tokens, recipe.sampler.mask_ratio)
    decoded = config.decoded(clip.tokens - visible)
    encoder = block_activations(visible, vit.width, vit.mlp_ratio, vit.depth, half, again)
    decoder = block_activations(
        visible + decoded, config.decoder_width, vit.mlp_ratio, config.decoder_depth, half, again
    )
    # Prediction, target and their difference; what changes in it.
    outputs = decoded * clip.pixels * _FLOAT
    ends = (3 + (config.motion_weight != 1)) * outputs
    policy, graph = 0.0, 0.0
    if isinstance(recipe.sampler, TATSConfig):
        paths = clip.tokens * clip.slices * recipe.sampler.network.width * (2 if half else _FLOAT)
        # Trajectories and their stack, and in an update the gradients of both.
        policy = max(2.0, 4 / recipe.sampler.ppo.minibatches) * paths * recipe.accumulate
        # The prediction as pixels; then the reward of it, while backward has freed nothing yet.
        reward = _OF_REWARD.get(recipe.sampler.ppo.reward, 0) * clip.tokens * clip.pixels * _FLOAT
        ends += max(4 * outputs, outputs + reward)
    elif isinstance(recipe.sampler, AdaptiveConfig):
        ratio = _adaptive_mlp_ratio(recipe.sampler)
        graph = block_activations(clip.tokens, vit.width, ratio, 1, half, again=False)
        ends += 4 * outputs
    # Pixels of the whole share: as they came, normalised, and cut into patches; and the sampler's tokens.
    share = clip.tokens * (clip.pixels * (2 * _FLOAT + 1) + (vit.width * _FLOAT if policy or graph else 0))
    share *= recipe.accumulate
    return encoder + decoder + ends + graph + share, policy + share


def finetune_activations(recipe: FinetuneConfig) -> tuple[float, float]:
    """Bytes of one clip in a fine-tuning step, as `joint_activations`."""
    vit, clip = recipe.model, recipe.clip
    half = recipe.precision == "bf16"
    blocks = block_activations(
        clip.tokens, vit.width, vit.mlp_ratio, vit.depth, half, vit.gradient_checkpointing
    )
    # Pixels of the whole share: as they came, and normalised (or mixed); of a part, cut into patches.
    pixels = clip.tokens * clip.pixels * ((1 + _FLOAT) * recipe.accumulate + _FLOAT)
    return blocks + pixels, pixels


Recipe = PretrainConfig | FinetuneConfig


def step_parameters(recipe: Recipe, classes: int) -> tuple[int, int]:
    """Of the network that `shard` divides, and of the sampler, which stays whole."""
    vit, clip = recipe.model, recipe.clip
    if isinstance(recipe, PretrainConfig):
        return mae_parameters(vit, recipe.mae, clip), sampler_parameters(vit, recipe.sampler, clip)
    head_norm = recipe.head_norm == "layer"  # that of the batch has no weights
    return classifier_parameters(vit, clip, classes, head_norm=head_norm), 0


def step_memory(recipe: Recipe, workers: int, classes: int) -> Memory:
    """Memory of a step on each of `workers`."""
    clips = recipe.batch_size // workers // recipe.accumulate
    if isinstance(recipe, PretrainConfig):
        activations, after = joint_activations(recipe)
    else:
        activations, after = finetune_activations(recipe)
        clips *= recipe.samples_per_clip
    activations, after = clips * activations, clips * after
    network, sampler = step_parameters(recipe, classes)
    half = 2 if recipe.precision == "bf16" else 0  # autocast holds matrices in bfloat16 too
    if not recipe.shard or workers == 1:
        state = (network + sampler) * _FLOAT
        activations += (network + sampler) * half
        # Gradients exist before the backward pass in the buckets of several workers, or of earlier parts.
        # Otherwise they take the place of the activations, and only what is more counts.
        beside_activations = workers > 1 or recipe.accumulate > 1
        gradients = state if beside_activations else max(0, ceil(state + after - activations))
        return Memory(state, gradients, 2 * state, max(activations, after))
    blocks = {block_parameters(recipe.model.width, recipe.model.mlp_ratio): recipe.model.depth}
    if isinstance(recipe, PretrainConfig):
        decoder = block_parameters(recipe.mae.decoder_width, recipe.model.mlp_ratio)
        blocks[decoder] = blocks.get(decoder, 0) + recipe.mae.decoder_depth
    rest = network - sum(parameters * depth for parameters, depth in blocks.items())
    # A block's matrices, the next block's, its gradients, and these in float32 as they are sent.
    gathered = max(blocks) * (3 * (half or _FLOAT) + _FLOAT) + rest * (_FLOAT + half) + sampler * half
    state = (ceil(network / workers) + sampler) * _FLOAT
    gradients = (network + sampler) * _FLOAT if recipe.accumulate > 1 else state
    # A health check, and the end, gather all weights.
    return Memory(state, gradients, 2 * state, max(activations + gathered, after, network * _FLOAT))


def step_flops(recipe: Recipe) -> float:
    """FLOPs of a step for one video, with all its samples."""
    if isinstance(recipe, PretrainConfig):
        return joint_step(recipe)
    return recipe.samples_per_clip * finetune_step(recipe.model, recipe.clip)


def misfit(recipe: Recipe, workers: int, classes: int, room: float) -> str | None:
    """Return why a step does not fit into `room` bytes a worker, and what would; None where it fits."""
    needed = step_memory(recipe, workers, classes).total
    if needed <= room:
        return None
    fitting: dict[str, str] = {}  # the first of each key
    for key, value, changed, among in _alternatives(recipe, workers):
        less = step_memory(changed, among, classes).total
        if less <= room:
            fitting.setdefault(key, f"{key}={value} ({size(less)})")
    advice = f"this would fit: {' or '.join(fitting.values())}" if fitting else "use a smaller model"
    return f"a step needs {size(needed)} a worker, and there are {size(room)}; {advice}"


def _alternatives(recipe: Recipe, workers: int) -> Iterator[tuple[str, object, Recipe, int]]:
    share = recipe.batch_size // workers
    for parts in range(recipe.accumulate + 1, share + 1):
        if share % parts == 0:
            yield "accumulate", parts, recipe.model_copy(update={"accumulate": parts}), workers
    again = recipe.model.model_copy(update={"gradient_checkpointing": True})
    yield "model.gradient_checkpointing", "true", recipe.model_copy(update={"model": again}), workers
    counts = range(workers + 1, recipe.batch_size + 1)
    more_workers = [more for more in counts if recipe.batch_size % (more * recipe.accumulate) == 0]
    for more in more_workers:
        yield "workers", more, recipe, more
    if not recipe.shard and not recipe.compile:
        divided = recipe.model_copy(update={"shard": True})
        if workers > 1:
            yield "shard", "true", divided, workers
        for more in more_workers:
            yield "shard", f"true with workers={more}", divided, more
