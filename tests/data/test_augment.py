"""RandAugment on a device is Pillow's, byte for byte on a CPU."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from tats_core.data import augment

VIDEOMAE = "rand-m7-n4-mstd0.5-inc1"


def clip(height: int, width: int, seed: int = 0, frames: int = 2) -> Tensor:
    """Return `frames_THWC`: smooth colours with grain, in which every frame is another."""
    rng = np.random.default_rng(seed)
    waves_THWC = rng.uniform(0, 255, (frames, 2, 3, 3)).astype(np.float32)
    large_THWC = np.stack([
        np.asarray(Image.fromarray(frame.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC))
        for frame in waves_THWC
    ])  # fmt: skip
    grainy_THWC = large_THWC + rng.normal(0, 6, large_THWC.shape)
    return torch.from_numpy(grainy_THWC.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("policy", [VIDEOMAE, "rand-m9-n3", "rand-m10-n2-mstd3-mmax10"])
def test_a_policy_on_a_device_is_that_of_pillow(policy: str) -> None:
    for seed in range(40):
        frames_THWC = clip(20 + seed % 7, 31 - seed % 5, seed)
        there_THWC = augment.on_device(frames_THWC, policy, seed)
        assert there_THWC.dtype == torch.uint8
        assert torch.equal(there_THWC, augment.on_cpu(frames_THWC, policy, seed)), seed


@pytest.mark.parametrize("name", [*auto_augment._RAND_TRANSFORMS, *auto_augment._RAND_INCREASING_TRANSFORMS])
@settings(max_examples=12, deadline=None)
@given(level=st.floats(0, 10), seed=st.integers(0, 99), height=st.integers(1, 20), width=st.integers(1, 20))
def test_each_operation_is_that_of_pillow(
    name: str, level: float, seed: int, height: int, width: int
) -> None:
    policy = augment._policy("rand-m5-inc1" if name.endswith("Increasing") else "rand-m5")
    (operation,) = (operation for operation in policy.ops if operation.name == name)
    random.seed(seed)
    strength = operation.level_fn(level, operation.hparams) if operation.level_fn else ()
    frames_THWC = clip(height, width, seed, frames=1)
    expected = operation.aug_fn(Image.fromarray(frames_THWC[0].numpy()), *strength, **operation.kwargs)
    (frame_HWC,) = augment._APPLY[operation.aug_fn.__name__](frames_THWC, *strength).numpy()
    assert np.array_equal(frame_HWC, np.asarray(expected)), strength


def test_every_operation_of_a_policy_is_known_and_drawn() -> None:
    drawn = Counter(name for seed in range(200) for name, _ in augment.operations(VIDEOMAE, seed))
    assert drawn.keys() == augment._APPLY.keys()


@pytest.mark.parametrize("apply", [augment.on_cpu, augment.on_device])
def test_all_frames_of_a_clip_are_treated_alike_and_drawn_from_the_seed_only(
    apply: augment.RandAugment,
) -> None:
    clip_THWC = clip(24, 24, frames=1).expand(4, 24, 24, 3)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = (np.random.get_state()[2], random.getstate())  # noqa: NPY002
    results = [apply(clip_THWC, VIDEOMAE, seed) for seed in (0, 0, 1, 2, 3)]
    assert (np.random.get_state()[2], random.getstate()) == before  # noqa: NPY002
    assert torch.equal(results[0], results[1])
    assert len({result.numpy().tobytes() for result in results}) > 2
    for result in results:
        assert result.shape == clip_THWC.shape
        assert torch.equal(result, result[:1].expand_as(result))


def test_what_is_uncovered_is_grey_whatever_the_frame() -> None:
    black_THWC = torch.zeros(2, 24, 24, 3, dtype=torch.uint8)
    colours = set()
    for seed in range(60):
        # One operation: turned, sheared or shifted, a black frame is black and grey; else of one colour.
        colours.add(tuple(augment.on_cpu(black_THWC, "rand-m9-n1", seed).unique().tolist()))
    assert (0, augment.GREY) in colours
    assert all(len(values) == 1 for values in colours - {(0, augment.GREY)})


def test_no_bits_at_all_are_black() -> None:
    """Of timm's `posterize` at its strongest, which Pillow refuses."""
    strongest = next(
        seed for seed in range(99) if augment.operations("rand-m10-n1-inc1", seed) == [("posterize", (0,))]
    )
    assert not augment.on_cpu(clip(8, 8), "rand-m10-n1-inc1", strongest).any()
    assert not augment.on_device(clip(8, 8), "rand-m10-n1-inc1", strongest).any()


def test_a_frame_of_one_colour_and_a_step_have_hand_worked_values() -> None:
    flat_THWC = torch.full((1, 4, 4, 3), 90, dtype=torch.uint8)
    for name in ("auto_contrast", "equalize"):  # nothing to stretch
        assert torch.equal(augment._APPLY[name](flat_THWC), flat_THWC)
    # From 50 to 150 of 255: (100 - 50) · 255 / 100 = 127.5, cut off.
    step_THWC = torch.tensor([50, 100, 150], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 1, 3, 3)
    assert augment._auto_contrast(step_THWC)[0, 0, :, 0].tolist() == [0, 127, 255]
    # 1.5 times as far from their mean, 100, as they were.
    assert augment._contrast(step_THWC, 1.5)[0, 0, :, 0].tolist() == [25, 100, 175]
    assert augment._posterize(step_THWC, 2)[0, 0, :, 0].tolist() == [0, 64, 128]
    # Shifted by a pixel to the left: the last one is uncovered.
    assert augment._translate_x(step_THWC, 1 / 3)[0, 0, :, 0].tolist() == [100, 150, 128]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_policy_on_a_gpu_is_that_of_pillow() -> None:
    for seed in range(40):
        frames_THWC = clip(64, 80, seed)
        there_THWC = augment.on_device(frames_THWC.cuda(), VIDEOMAE, seed).cpu()
        assert torch.equal(there_THWC, augment.on_cpu(frames_THWC, VIDEOMAE, seed)), seed
