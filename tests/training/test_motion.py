from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tats_core.models.tokens import ClipConfig
from tats_core.training import motion
from tats_core.training.motion import brightness, contrast, flow_motion, pixel_motion

CLIP = ClipConfig(frames=2, size=4, tubelet=2, patch=2)


def test_pixel_motion_is_the_change_from_the_frame_before() -> None:
    video_BCTHW = torch.tensor([0.0, 1.0, 1.0, 4.0]).view(1, 1, 4, 1, 1).repeat(1, 3, 1, 2, 2)
    video_BCTHW[:, 0] = 0
    # Two of three channels change; the first frame repeats the change of the second.
    expected = [2 / 3, 2 / 3, 0.0, 2.0]
    assert pixel_motion(video_BCTHW)[0, :, 0, 0].tolist() == pytest.approx(expected)


def _texture(height: int, width: int, seed: int) -> Tensor:
    """Smooth grey noise, uint8 `[H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, height // 4, width // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (fine[0, 0].clamp(0, 1) * 255).to(torch.uint8)


def _video(*frames_HW: Tensor) -> Tensor:
    return torch.stack(frames_HW)[None, None].expand(1, 3, -1, -1, -1).contiguous()


def test_a_camera_that_pans_is_no_motion() -> None:
    pytest.importorskip("cv2")
    wide_HW = _texture(64, 96, 0)
    video_BCTHW = _video(*(wide_HW[:, 2 * frame : 2 * frame + 64] for frame in range(4)))
    motion_BTHW = flow_motion(video_BCTHW)
    assert motion_BTHW.shape == (1, 4, 64, 64)
    assert motion_BTHW[..., 16:48, 16:48].mean() < 0.1, "2 pixels a frame, all of them the camera's"


def test_what_moves_against_the_background_has_its_speed_in_pixels() -> None:
    pytest.importorskip("cv2")
    frames = []
    for frame in range(3):
        image_HW = _texture(64, 64, 1).clone()
        image_HW[20:44, 10 + 3 * frame : 34 + 3 * frame] = _texture(24, 24, 2)
        frames.append(image_HW)
    motion_BTHW = flow_motion(_video(*frames))
    # The middle of the square in the frame before each flow; the first frame repeats the next.
    assert motion_BTHW[0, 1, 26:38, 16:28].median().item() == pytest.approx(3, abs=0.5)
    assert torch.equal(motion_BTHW[0, 0], motion_BTHW[0, 1])
    assert motion_BTHW[0, 1, :12].median().item() < 0.1


def test_a_single_frame_has_no_motion() -> None:
    pytest.importorskip("cv2")
    frame_BCTHW = _video(_texture(16, 24, 0))
    assert torch.equal(pixel_motion(frame_BCTHW.float()), torch.zeros(1, 1, 16, 24))
    assert torch.equal(flow_motion(frame_BCTHW), torch.zeros(1, 1, 16, 24))


def test_flow_is_measured_in_clips_of_a_few_pixels() -> None:
    pytest.importorskip("cv2")
    still = _texture(8, 8, 0)
    moved = still.roll(1, 1)
    assert flow_motion(_video(still, still)).abs().max().item() < 0.1
    motion_BTHW = flow_motion(_video(still, moved))
    assert motion_BTHW.shape == (1, 2, 8, 8)
    assert motion_BTHW.isfinite().all()


def test_flow_repeats_itself_to_the_bit() -> None:
    pytest.importorskip("cv2")
    wide_HW = _texture(64, 96, 3)
    video_BCTHW = _video(*(wide_HW[:, frame**2 : frame**2 + 64] for frame in range(4)))
    assert torch.equal(flow_motion(video_BCTHW), flow_motion(video_BCTHW))


def test_brightness_and_contrast_of_a_token_are_its_mean_and_its_deviation_in_space() -> None:
    video_BCTHW = torch.zeros(1, 3, 2, 4, 4)
    # Of the first token the second frame is brighter; within each frame two pixels are 1 above the others.
    video_BCTHW[:, :, :, 0, :2] = 1
    video_BCTHW[:, :, 1, :2, :2] += 4
    assert brightness(video_BCTHW, CLIP).tolist() == [[0.5 + 2, 0, 0, 0]]
    assert contrast(video_BCTHW, CLIP).tolist() == [[0.5, 0, 0, 0]]


def test_a_lift_is_the_mean_over_clips_of_chosen_motion_over_that_of_all() -> None:
    assert motion.lift(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])) == pytest.approx((1 + 2) / 2)
    # A clip of a tenth of the median clip's motion is noise and does not count.
    assert motion.lift(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([1.0, 2.0, 0.1])) == pytest.approx(1.5)


def test_where_nothing_moves_every_choice_is_blind() -> None:
    assert motion.lift(torch.zeros(3), torch.zeros(3)) == 1


def test_the_share_of_the_oracle_is_0_for_a_blind_choice_and_1_for_the_best() -> None:
    assert motion.share_of_oracle(1.0, 5.0) == 0
    assert motion.share_of_oracle(3.0, 5.0) == 0.5
    assert motion.share_of_oracle(5.0, 5.0) == 1
    assert motion.share_of_oracle(1.0, 1.0) == 0, "nothing to gain"


def test_the_rank_correlation_is_spearmans() -> None:
    score_BN = torch.tensor([[0.1, 0.5, 0.9, 3.0]] * 4)
    look_BN = torch.tensor(
        [[1.0, 2.0, 3.0, 100.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.0], [7.0, 7.0, 7.0, 7.0]]
    )
    # The third: 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15). The last has no order.
    expected = [1, -1, 0.8, 0]
    assert motion.rank_correlation(score_BN, look_BN).tolist() == pytest.approx(expected)
