"""The method in one file computes what tats_core computes, on the same weights."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.sampling import Policy, Rollout
from tats_core.sampling.ppo import PPOConfig, Transition, ppo_loss, weights
from tats_core.sampling.reward import Outcome, motion, top, within_clips
from tats_core.sampling.tats import NetworkConfig, TATSSampler
from tats_core.sampling.trajectory_attention import TrajectoryAttention

FILE = Path(__file__).parents[2] / "examples" / "tats_minimal.py"
CLIPS = 3


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    """The example, imported."""
    spec = importlib.util.spec_from_file_location("tats_minimal", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def sampler_of_tats_core(minimal: ModuleType, sampler: Any, width: int = 48) -> TATSSampler:
    """The sampler of tats_core with the weights of the example's."""
    full = TATSSampler(minimal.N, 0.9, minimal.F, 96, NetworkConfig(width=width, heads=2))
    inside = ("attention", "norm1", "norm2", "mlp")
    full.load_state_dict(
        {
            f"blocks.0.{name}" if name.split(".")[0] in inside else name: weight
            for name, weight in sampler.state_dict().items()
        }
    )
    return full


def moved(sampler: Any) -> None:
    """Change all weights a little, as training does."""
    with torch.no_grad():
        for weight in sampler.parameters():
            weight += 0.05 * torch.randn_like(weight)


def test_it_imports_nothing_but_pytorch_and_the_standard_library() -> None:
    nodes = list(ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} == {
        "argparse",
        "math",
        "time",
        "typing",
        "torch",
    }


def test_trajectory_attention_in_the_papers_form_equals_the_absorbed_one(minimal: ModuleType) -> None:
    literal = minimal.TrajectoryAttention(48, 2)
    absorbed = TrajectoryAttention(48, 2, minimal.F)
    absorbed.load_state_dict(literal.state_dict())
    tokens_BND = torch.randn(CLIPS, minimal.N, 48)
    assert_close(literal(tokens_BND), absorbed(tokens_BND), atol=1e-5, rtol=1e-5)


def test_log_probabilities_and_values_are_those_of_tats_core(minimal: ModuleType) -> None:
    sampler = minimal.Sampler()
    moved(sampler)
    tokens_BND = torch.randn(CLIPS, minimal.N, 96)
    log_probs_BN, value_B = sampler(tokens_BND)
    policy = sampler_of_tats_core(minimal, sampler)(tokens_BND)
    assert_close(log_probs_BN, policy.log_probs_BN, atol=1e-5, rtol=1e-5)
    assert_close(value_B, policy.value_BN.mean(1), atol=1e-5, rtol=1e-5)


def test_the_autoencoders_loss_is_that_of_tats_core(minimal: ModuleType) -> None:
    mae = minimal.MAE()
    full = VideoMAE(
        ViTConfig(width=96, depth=3, heads=2, mlp_ratio=4),
        MAEConfig(decoder_width=48, decoder_depth=1, decoder_heads=2, target="pixel"),
        ClipConfig(frames=minimal.FRAMES, size=minimal.SIZE, tubelet=minimal.TUBELET, patch=minimal.PATCH),
    )
    names = {
        r"^embed\.": "encoder.embedding.",
        r"^(en|de)coder\.norm\.": lambda match: "encoder.norm." if match[1] == "en" else "decoder_norm.",
        r"^encoder\.layers": "encoder.blocks",
        r"^decoder\.layers": "decoder",
        r"self_attn\.in_proj_": "attn.qkv.",
        r"self_attn\.out_proj": "attn.proj",
        r"linear(\d)": r"mlp.fc\1",
    }
    shapes = {name: weight.shape for name, weight in full.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, weight in mae.state_dict().items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        if "position" not in name:
            weights[name] = weight.view(shapes[name])
    full.load_state_dict(weights)
    full.encoder.position_ND, full.decoder_position_NE = mae.position_ND, mae.decoder_position_NE

    patches_BNP = minimal.draw_clips(CLIPS)
    visible_BK, masked_BM = minimal.draw(torch.zeros(CLIPS, minimal.N))
    expected_BM = full(patches_BNP, visible_BK, masked_BM).error_BM
    error_BM = mae(patches_BNP, visible_BK, masked_BM).square().mean(2)
    assert_close(error_BM, expected_BM, atol=1e-5, rtol=1e-5)


def test_the_reward_and_its_weights_are_those_of_tats_core(minimal: ModuleType) -> None:
    patches_BNP = minimal.draw_clips(CLIPS)
    logits_BN = torch.randn(CLIPS, minimal.N)
    visible_BK, masked_BM = minimal.draw(logits_BN.log_softmax(1))
    weight_BM = minimal.weights(logits_BN.log_softmax(1), masked_BM)
    rollout = Rollout(visible_BK, masked_BM, minimal.N, Policy(logits_BN))
    transition = Transition(torch.zeros(CLIPS, minimal.N, 1), rollout, torch.zeros(masked_BM.shape))
    assert_close(
        weight_BM, weights(transition, PPOConfig(max_weight=minimal.MAX_WEIGHT)), atol=1e-5, rtol=1e-5
    )

    target_BMP = minimal.take(patches_BNP, masked_BM)
    prediction_BMP = target_BMP + torch.randn_like(target_BMP)
    error_BM = (prediction_BMP - target_BMP).square().mean(2)
    outcome = Outcome(patches_BNP, prediction_BMP, error_BM, masked_BM, minimal.F, minimal.TUBELET)
    share = minimal.K / minimal.N
    expected_BM = within_clips(top(motion(outcome, minimal.FLOOR), share, weight_BM), weight_BM)
    reward_BM = minimal.reward(patches_BNP, prediction_BMP - target_BMP, masked_BM, weight_BM)
    assert_close(reward_BM, expected_BM, atol=1e-4, rtol=1e-4)


def test_the_loss_of_ppo_and_its_gradient_are_those_of_tats_core(minimal: ModuleType) -> None:
    sampler = minimal.Sampler()
    tokens_BND, reward_BM = torch.randn(CLIPS, minimal.N, 96), torch.randn(CLIPS, minimal.N - minimal.K)
    with torch.no_grad():
        old_log_probs_BN, old_value_B = sampler(tokens_BND)
        old = sampler_of_tats_core(minimal, sampler)(tokens_BND)
    visible_BK, masked_BM = minimal.draw(old_log_probs_BN)
    moved(sampler)
    advantage_BM = reward_BM - old_value_B[:, None]
    mean, deviation = float(advantage_BM.mean()), float(advantage_BM.std())

    weight_BM = minimal.weights(old_log_probs_BN, masked_BM)
    batch = minimal.Transition(tokens_BND, masked_BM, reward_BM, weight_BM, old_log_probs_BN, old_value_B)
    loss, health = minimal.ppo_loss(sampler, batch, (advantage_BM - mean) / deviation)
    loss.backward()

    full = sampler_of_tats_core(minimal, sampler)
    config = PPOConfig(clip=minimal.CLIP, value_weight=minimal.VALUE_WEIGHT)
    transition = Transition(
        tokens_BND, Rollout(visible_BK, masked_BM, minimal.N, Policy(old.logits_BN, old.value_BN)), reward_BM
    )
    expected, metrics = ppo_loss(full(tokens_BND), transition, config, mean, deviation)
    expected.backward()
    assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert health["clipped"] == pytest.approx(float(metrics["clip_fraction"]))
    assert 0 < health["clipped"] < 1, "the policies differ"
    assert_close(sampler.project.weight.grad, full.project.weight.grad, atol=1e-5, rtol=1e-4)


def test_a_draw_without_replacement_follows_the_policy(minimal: ModuleType) -> None:
    log_probs_BN = torch.full((2, minimal.N), -10.0)
    log_probs_BN[:, 7] = 30.0
    visible_BK, masked_BM = minimal.draw(log_probs_BN)
    assert visible_BK.shape == (2, minimal.K)
    assert (visible_BK[:, 0] == 7).all(), "by far the likeliest token is drawn first"
    everything_BN = torch.cat([visible_BK, masked_BM], 1).sort(1).values
    assert (everything_BN == torch.arange(minimal.N)).all()


def test_a_few_steps_start_from_the_old_policy_and_leave_it(
    minimal: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimal, "BATCH", 4)
    history = minimal.train(steps=4, every=2)
    assert [row["step"] for row in history] == [2, 4]
    assert history[-1]["loss"] < history[0]["loss"]
    for row in history:
        assert row["first_ratio"] == pytest.approx(1, abs=1e-6), "but for the rounding of another batch size"
        assert row["kl"] > 0


@pytest.mark.slow
def test_the_sampler_finds_what_moves(minimal: ModuleType) -> None:
    before, *_, after = (row["motion_lift"] for row in minimal.train(steps=40, every=5))
    assert before < 2 < 4 < after
