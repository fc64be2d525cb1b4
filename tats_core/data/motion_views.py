"""Ground-truth motion as a test clip shows it: the same frames, the same crop. For measuring only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tats_core.data import benchmarks, clips, transforms
from tats_core.data.ground_truth import load_motion
from tats_core.data.loaders import ClipOptions, recipe
from tats_core.data.manifest import Manifest


def view_motion(manifest: Manifest, options: ClipOptions, index: int) -> Tensor:
    """Return `motion_THW` in [0, 1] of the central view of video `index`: the share of each pixel that moves.

    It is the view that `eval_views(manifest, options, clips=1, crops=1)` yields, pixel for pixel.

    Raises:
        DataError: there is no ground truth for it.
    """
    motion_THW = load_motion(manifest, manifest.videos[index].id)
    plan = recipe(options, benchmarks.find(manifest.benchmark), "finetune")
    indices_VT = clips.view_indices(len(motion_THW), options.frames, plan.sampling, plan.stride, 1)
    _, height, width = motion_THW.shape
    (box,) = transforms.view_boxes(height, width, 1)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    cut_T1HW = torch.from_numpy(motion_THW[indices_VT[0], rows, columns]).float().unsqueeze(1)
    size = (options.size, options.size)
    return interpolate(cut_T1HW, size, mode="bilinear", antialias=True).squeeze(1)
