from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tats_core.data.clips import normalise
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.sampling import LearnedSampler, Policy, Rollout, Sampler, SamplerSite
from tats_core.sampling.fixed import RandomSampler
from tats_core.sampling.plackett_luce import Noise
from tats_core.sampling.tats import TATSConfig
from tats_core.training import health
from tats_core.training.events import EventLog, read_events
from tats_core.training.health import HealthCheck, HeldOut
from tats_core.training.motion import brightness
from tats_core.training.world import World

CLIP = ClipConfig(frames=4, size=16, tubelet=2, patch=4)
VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3})


class Corner(Sampler):
    """Always shows the first places of the first slice."""

    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        return self.rollout(torch.arange(self.visible).expand(clips, -1))


def _mae() -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(VIT, MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2), CLIP)


def _moving_corner(clips: int) -> Tensor:
    """Ground truth: the first 4 tokens of slice 0 move, nothing else does."""
    motion_BTHW = torch.zeros(clips, 4, 16, 16)
    motion_BTHW[:, :2, :4] = 1
    return motion_BTHW


def _check(folder: Path, events: EventLog | None = None, motion: bool = True) -> HealthCheck:
    generator = torch.Generator().manual_seed(0)
    label_B = torch.arange(48) % 3
    # Classes differ in brightness, which even an untrained encoder passes on.
    video_BCTHW = torch.randn(48, 3, 4, 16, 16, generator=generator) + 2 * label_B.view(-1, 1, 1, 1, 1)
    video_BCTHW = (40 * video_BCTHW + 100).clamp(0, 255).to(torch.uint8)
    held_out = HeldOut(
        video_BCTHW[:24],
        label_B[:24],
        video_BCTHW[8:],
        label_B[8:],
        _moving_corner(40) if motion else None,
        classes=3,
    )
    return HealthCheck(held_out, 0.875, World(), events or EventLog(None), folder, seed=0)


def test_the_policy_is_measured_by_the_ground_truth_of_motion(tmp_path: Path) -> None:
    metrics = _check(tmp_path).policy(_mae(), Corner(32, 0.875))
    # The four visible tokens are the four that move: 1 over 4/32.
    assert metrics["motion_lift"] == pytest.approx(8)
    # Blind drawing has lift 1, here from 40 clips of 4 tokens of 32.
    deviation = 8 * math.sqrt(1 / 8 * 7 / 8 / 160)
    assert metrics["random_lift"] == pytest.approx(1, abs=4 * deviation)
    # Noise moves everywhere alike.
    assert metrics["pixel_motion_lift"] == pytest.approx(1, abs=0.1)
    # No choice of four tokens is better.
    assert metrics["motion_oracle"] == pytest.approx(8)
    assert metrics["motion_share"] == pytest.approx(1)
    assert metrics["coverage"] == 4 / 32
    assert metrics["entropy_share"] == 1


def test_without_ground_truth_motion_is_that_of_pixels(tmp_path: Path) -> None:
    metrics = _check(tmp_path, motion=False).policy(_mae(), Corner(32, 0.875))
    assert metrics["motion_lift"] == metrics["pixel_motion_lift"]


def test_the_flow_is_computed_once_and_left_out_with_a_note_where_there_is_no_opencv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def flow(video_BCTHW: Tensor) -> Tensor:
        computed.append(len(video_BCTHW))
        return _moving_corner(len(video_BCTHW))

    monkeypatch.setattr(health.motion, "flow_motion", flow)
    monkeypatch.setattr(health.motion, "has_flow", lambda: True)
    check = _check(tmp_path)
    for _ in range(2):
        metrics = check.policy(_mae(), Corner(32, 0.875))
    assert (metrics["flow_lift"], metrics["flow_oracle"], metrics["flow_share"]) == pytest.approx((8, 8, 1))
    assert computed == [32, 8]

    monkeypatch.setattr(health.motion, "has_flow", lambda: False)
    metrics = _check(tmp_path, EventLog(tmp_path / "events.jsonl")).policy(_mae(), Corner(32, 0.875))
    assert not [name for name in metrics if name.startswith("flow")]
    (note,) = (
        event["text"] for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "note"
    )
    assert "pip install 'tats-core[flow]'" in note


class Bright(LearnedSampler):
    """A policy that scores tokens by what it is given."""

    def __init__(self, score_BN: Tensor) -> None:
        super().__init__(32, 0.875)
        self.score_BN = score_BN

    def forward(self, tokens_BND: Tensor) -> Policy:
        scores_BN = self.score_BN[: len(tokens_BND)]
        self.score_BN = self.score_BN[len(tokens_BND) :]
        return Policy(scores_BN, torch.zeros_like(scores_BN))


def test_a_policy_that_follows_brightness_is_seen_at_a_glance(tmp_path: Path) -> None:
    check = _check(tmp_path)
    video_BCTHW = normalise(check.held_out.test_BCTHW)
    metrics = check.policy(_mae(), Bright(brightness(video_BCTHW, CLIP)))
    assert metrics["brightness_correlation"] == pytest.approx(1)
    # Of the motion only the four moving tokens of 32 are known, and chance decides how bright they are.
    assert abs(metrics["motion_correlation"]) < 0.2


def test_the_entropy_of_a_learned_policy_is_a_share_of_log_n(tmp_path: Path) -> None:
    config = TATSConfig.model_validate(
        {"mask_ratio": 0.875, "network": {"width": 12, "heads": 2, "spread": 0.1}}
    )
    sampler = config.build(SamplerSite(slices=2, rows=4, columns=4, width=24, heads=3))
    assert _check(tmp_path).policy(_mae(), sampler)["entropy_share"] == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        sampler.actor.weight.mul_(1e6)  # type: ignore[union-attr, operator]
    assert _check(tmp_path).policy(_mae(), sampler)["entropy_share"] < 0.2


def test_features_that_carry_the_class_are_seen_by_the_probes(tmp_path: Path) -> None:
    with torch.no_grad():
        metrics = _check(tmp_path).features(_mae())
    assert metrics["linear_top1"] == 100
    assert metrics["knn_top1"] == 100
    assert metrics["probe_chance"] == pytest.approx(100 / 3)
    assert 1 < metrics["effective_rank"] <= 24


def test_videos_without_labels_are_watched_without_probes(tmp_path: Path) -> None:
    check = _check(tmp_path)
    none_B = torch.full_like(check.held_out.test_label_B, -1)
    check.held_out = replace(check.held_out, test_label_B=none_B, train_label_B=none_B[:24], classes=0)
    with torch.no_grad():
        assert check.features(_mae()).keys() == {"effective_rank", "between_clip_variance"}


def test_a_collapsed_encoder_is_seen_by_rank_and_variance(tmp_path: Path) -> None:
    mae = _mae()
    with torch.no_grad():
        mae.encoder.embedding.weight.zero_()
        metrics = _check(tmp_path).features(mae)
    assert metrics["between_clip_variance"] == pytest.approx(0, abs=1e-9)
    assert metrics["linear_top1"] == pytest.approx(100 / 3, abs=5)


def test_a_check_leaves_the_model_training_and_repeats_itself(tmp_path: Path) -> None:
    mae, sampler = (
        _mae().train(),
        RandomSampler(32, 0.875),
    )
    check = _check(tmp_path)
    assert check(mae, sampler, 1) == check(mae, sampler, 2)
    assert mae.training


def test_pictures_are_written_and_logged(tmp_path: Path) -> None:
    _check(tmp_path, EventLog(tmp_path / "events.jsonl"))(_mae(), Corner(32, 0.875), 7)
    files = [event for _, event in read_events(tmp_path / "events.jsonl") if event["kind"] == "file"]
    assert [event["step"] for event in files] == [7] * 8
    assert {event["key"] for event in files} == {f"masks/clip{clip}" for clip in range(4)}
    for event in files:
        with Image.open(tmp_path / event["path"]) as picture:
            assert getattr(picture, "n_frames", 1) == (4 if event["path"].endswith("gif") else 1)
