"""Where the motion is in a generated video: for measuring the sampler (motion lift), never for training.

The masks lie beside the videos as `ground_truth_motion/<id>.npz`, which no reader or loader opens. The view
of a mask that fits a test clip is in `motion_views`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tats_core.data.manifest import Manifest
from tats_core.errors import DataError

FOLDER: Final = "ground_truth_motion"


def motion_path(root: Path, video_id: str) -> Path:
    """Return the place of a video's mask below the root of its data set."""
    return root / FOLDER / f"{video_id}.npz"


def save_motion(path: Path, motion_THW: NDArray[np.bool_]) -> None:
    """Write a mask, eight pixels a byte, compressed."""
    with path.open("wb") as file:
        np.savez_compressed(file, bits=np.packbits(motion_THW), shape=np.array(motion_THW.shape))


def has_motion(manifest: Manifest) -> bool:
    """Return whether the data set has ground truth; only generated ones do."""
    return (manifest.root / FOLDER).is_dir()


def load_motion(manifest: Manifest, video_id: str) -> NDArray[np.bool_]:
    """Return `motion_THW` of a whole video, True where the moving thing is.

    Raises:
        DataError: there is no ground truth for it.
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
