"""Where the motion is in a generated video: for measuring the sampler (motion lift), never for training.

The masks lie beside the videos (`generate.motion_path`), where no reader or loader opens them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from tats_core.data import benchmarks, clips, transforms
from tats_core.data.generate import MOTION, motion_path
from tats_core.data.loaders import ClipOptions, clip_rules
from tats_core.data.manifest import Manifest
from tats_core.errors import DataError
from tats_core.specs import sides


def has_motion(manifest: Manifest) -> bool:
    """Return whether the data set has ground truth; only generated ones do."""
    return (manifest.root / MOTION).is_dir()


def load_motion(manifest: Manifest, video_id: str) -> NDArray[np.bool_]:
    """Return `motion_THW` of a video, True where the moving sprite is.

    Raises:
        DataError: no ground truth for it.
    """
    path = motion_path(manifest.root, video_id)
    try:
        with np.load(path) as stored:
            T, H, W = stored["shape"].tolist()
            motion: NDArray[np.bool_] = np.unpackbits(stored["bits"], count=T * H * W).astype(bool)
            return motion.reshape(T, H, W)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"no ground truth of motion for video '{video_id}' at {path}; only generated data sets have it"
        ) from error


def motion_clips(manifest: Manifest, options: ClipOptions, indices: Sequence[int]) -> Tensor:
    """Return `motion_BTHW` in [0, 1] of the central views of videos: the share of each pixel that moves.

    They are the views that `eval_views(manifest, options, clips=1, crops=1)` yields, pixel for pixel.

    Raises:
        DataError: no ground truth for a video.
    """
    rules = clip_rules(options, benchmarks.BENCHMARKS[manifest.benchmark], "finetune")
    views = []
    for index in indices:
        motion_THW = load_motion(manifest, manifest.videos[index].id)
        n_frames, height, width = motion_THW.shape
        indices_VT = clips.view_indices(n_frames, options.frames, rules.sampling, rules.stride, 1)
        (box,) = transforms.view_boxes(height, width, options.size, 1)
        cut_T1HW = torch.from_numpy(motion_THW[indices_VT[0]][:, *box.slices]).float().unsqueeze(1)
        cut_T1HW = interpolate(cut_T1HW, sides(options.size), mode="bilinear", antialias=True)
        views.append(cut_T1HW.squeeze(1))
    return torch.stack(views)
