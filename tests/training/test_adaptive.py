"""AdaMAE's sampler: the network and the loss of its code, one step of which is followed by hand here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tats_core.errors import SpecError
from tats_core.models.tokens import patchify
from tats_core.sampling import Rollout, SamplerSite
from tats_core.sampling.adaptive import AdaptiveConfig, PublishedSampler
from tats_core.training.metrics import on_host
from tats_core.training.pretrain import JointTrainer, PretrainConfig
from tats_core.training.world import World

WIDTH = 24


def _published(width: int = WIDTH, slices: int = 2, side: int = 2) -> PublishedSampler:
    torch.manual_seed(0)
    built = AdaptiveConfig(mask_ratio=0.5).build(SamplerSite(slices, side, side, width, 3))
    assert isinstance(built, PublishedSampler)
    return built


def _logits(sampler: PublishedSampler, embedded_BND: Tensor) -> Tensor:
    """The network of models/pretrain/vit.py, without its dropout, from the weights alone."""
    w = dict(sampler.named_parameters())
    b, n, d = embedded_BND.shape
    x_BND = embedded_BND + w["position_1ND"]
    normed_BND = functional.layer_norm(x_BND, (d,), w["block.norm1.weight"], w["block.norm1.bias"], 1e-5)
    qkv_3BHNE = (normed_BND @ w["block.attn.qkv.weight"].T).view(b, n, 3, 8, d // 8).permute(2, 0, 3, 1, 4)
    query, key, value = qkv_3BHNE
    mixed_BHNE = (query @ key.transpose(2, 3) / (d // 8) ** 0.5).softmax(-1) @ value
    mixed_BND = mixed_BHNE.transpose(1, 2).reshape(b, n, d)
    x_BND = x_BND + mixed_BND @ w["block.attn.proj.weight"].T + w["block.attn.proj.bias"]
    normed_BND = functional.layer_norm(x_BND, (d,), w["block.norm2.weight"], w["block.norm2.bias"], 1e-5)
    hidden_BNX = functional.gelu(normed_BND @ w["block.mlp.fc1.weight"].T + w["block.mlp.fc1.bias"])
    x_BND = x_BND + hidden_BNX @ w["block.mlp.fc2.weight"].T + w["block.mlp.fc2.bias"]
    return (x_BND @ w["actor.weight"].T + w["actor.bias"]).squeeze(-1)


def test_the_published_network_has_the_8_290_561_parameters_of_a_vit_base() -> None:
    sampler = _published(width=768, slices=8, side=14)
    # Positions, q k v without biases, projection, MLP of 4 D, two norms, actor.
    by_hand = 1568 * 768 + 3 * 768**2 + (768**2 + 768) + (8 * 768**2 + 5 * 768) + 4 * 768 + (768 + 1)
    assert sum(p.numel() for p in sampler.parameters()) == by_hand == 8_290_561


def test_the_published_network_starts_as_adamaes() -> None:
    sampler = _published(width=96)
    assert not sampler.position_1ND.any()
    for name, weight in sampler.named_parameters():
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "actor.weight")):
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.9 * bound < weight.abs().max() <= bound, name
        elif name.endswith("bias"):
            assert not weight.any(), name


def test_it_drops_a_tenth_after_the_attention_and_after_the_mlp_and_nowhere_else() -> None:
    rates = {n: m.p for n, m in _published().named_modules() if isinstance(m, torch.nn.Dropout) and m.p}
    assert rates == {"block.attn.proj_drop": 0.1, "block.mlp.drop2": 0.1}


def test_its_logits_are_those_of_its_weights_by_hand() -> None:
    sampler = _published().eval()
    torch.nn.init.normal_(sampler.position_1ND)
    embedded_BND = torch.randn(3, 8, WIDTH)
    torch.testing.assert_close(sampler(embedded_BND).logits_BN, _logits(sampler, embedded_BND))


def test_its_eight_heads_must_divide_the_encoders_width() -> None:
    with pytest.raises(SpecError, match=r"8 heads, which do not divide the encoder's width \(100\); set"):
        _published(width=100)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_joint_step_has_the_gradients_of_adamaes_sum_of_losses(
    accumulate: int, tiny: dict[str, Any]
) -> None:
    recipe = PretrainConfig.model_validate(
        {
            **tiny,
            "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
            "sampler": {"kind": "adaptive", "mask_ratio": 0.5, "objective_weight": 0.5},
            "batch_size": 4,
            "accumulate": accumulate,
        }
    )
    trainer = JointTrainer(recipe, World())
    assert isinstance(trainer.sampler, PublishedSampler)
    trainer.sampler.eval()  # without dropout
    drawn: list[Rollout] = []
    steps: dict[str, list[Tensor]] = {}
    rates: dict[str, float] = {}
    reconstruct = trainer.reconstruct

    def watched(patches_BNP: Tensor, rollout: Rollout) -> Any:
        drawn.append(rollout)
        return reconstruct(patches_BNP, rollout)

    trainer.reconstruct = watched  # type: ignore[method-assign]
    for name, guarded, module in (
        ("mae", trainer.mae_step, trainer.mae),
        ("sampler", trainer.learner.guarded, trainer.sampler),
    ):

        def step(stop: None = None, name: str = name, guarded: Any = guarded, module: Any = module) -> bool:
            steps[name] = [p.grad.clone() for p in module.parameters()]
            rates[name] = guarded.optimizer.param_groups[0]["lr"]
            return True

        guarded.step = step
    clip = recipe.clip
    video_BCTHW = torch.randn(4, 3, clip.frames, clip.size, clip.size)
    trainer.step(video_BCTHW, lr=0.25)

    # Both losses in one graph, as in msc/engine_for_pretraining.py: the draw is not part of it.
    (rollout,) = drawn
    mae, sampler = trainer.mae, trainer.sampler
    patches_BNP = patchify(video_BCTHW, clip)
    error_BM = mae(patches_BNP, rollout.visible_BK, rollout.masked_BM).error_BM
    log_probs_BN = _logits(sampler, mae.encoder.embedding(patches_BNP)).log_softmax(1)
    sampling = -(log_probs_BN.gather(1, rollout.masked_BM) * error_BM.detach()).mean()
    total = error_BM.mean() + 0.5 * sampling
    for name, module in (("mae", mae), ("sampler", sampler)):
        expected = torch.autograd.grad(total, list(module.parameters()), retain_graph=True)
        for found, gradient in zip(steps[name], expected, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    # The sampling loss reaches the cube embedding, and one optimiser's rate holds for both.
    (alone,) = torch.autograd.grad(sampling, [mae.encoder.embedding.weight])
    assert alone.abs().max() > 1e-3
    assert rates == {"mae": 0.25, "sampler": 0.25}


def test_the_draws_of_a_step_with_dropout_follow_from_the_trainers_own_generator(
    tiny: dict[str, Any],
) -> None:
    recipe = PretrainConfig.model_validate({**tiny, "sampler": {"kind": "adaptive"}, "batch_size": 4})
    video_BCTHW = torch.randn(4, 3, recipe.clip.frames, recipe.clip.size, recipe.clip.size)
    losses = []
    for other in (1, 2):
        trainer = JointTrainer(recipe, World())
        torch.manual_seed(other)
        losses.append(on_host(trainer.step(video_BCTHW, lr=1e-3)))
    assert losses[0] == losses[1]
