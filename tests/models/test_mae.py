from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tats_core.models.mae import MAEConfig, Reconstruction, VideoMAE, _SquaredError, per_pixel
from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig, take

CLIP = ClipConfig(frames=4, size=8, tubelet=2, patch=4)
N, P = CLIP.tokens, CLIP.pixels
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def _mae(*, gradient_checkpointing: bool = False, **changes: object) -> VideoMAE:
    torch.manual_seed(0)
    small = {"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3}
    vit = ViTConfig.model_validate(small | {"gradient_checkpointing": gradient_checkpointing})
    config = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2} | changes
    return VideoMAE(vit, MAEConfig.model_validate(config), CLIP)


def _split(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    order_BN = torch.rand(batch, N, generator=torch.Generator().manual_seed(1)).argsort(1)
    return order_BN[:, :3], order_BN[:, 3:]


def _reconstruction(difference: list[float], motion_weight: float) -> Reconstruction:
    prediction = torch.tensor([[difference]])
    return Reconstruction(
        prediction,
        torch.zeros_like(prediction),
        prediction[..., :3],
        prediction[..., :3],
        tubelet=2,
        motion_weight=motion_weight,
    )


def test_what_is_masked_does_not_change_its_own_prediction() -> None:
    mae = _mae(global_token=True)
    visible_BK, masked_BM = _split()
    patches_BNP = torch.randn(2, N, P)
    other_BNP = patches_BNP.scatter(1, masked_BM[..., None].expand(-1, -1, P), 7.0)
    first_BMP, second_BMP = (mae(x, visible_BK, masked_BM).prediction_BMP for x in (patches_BNP, other_BNP))
    assert torch.equal(first_BMP, second_BMP)


def test_predictions_follow_the_order_in_which_masked_tokens_are_asked_for() -> None:
    mae = _mae().double()
    visible_BK, masked_BM = _split()
    patches_BNP = torch.randn(2, N, P, dtype=torch.float64)
    straight = mae(patches_BNP, visible_BK, masked_BM).prediction_BMP
    turned = mae(patches_BNP, visible_BK.flip(1), masked_BM.flip(1)).prediction_BMP
    torch.testing.assert_close(turned.flip(1), straight, rtol=0, atol=1e-12)


def test_a_mask_token_is_one_vector_and_its_position() -> None:
    mae = _mae()
    visible_BK, masked_BM = _split()
    mae.decoder = nn.ModuleList()
    decoded_BME = mae.decode(torch.randn(2, 3, 24), visible_BK, masked_BM)
    assert torch.equal(decoded_BME, mae.mask_token + mae.decoder_position_NE[masked_BM])


def test_with_a_global_token_it_also_carries_the_projected_mean_of_what_was_encoded() -> None:
    mae = _mae(global_token=True)
    assert mae.global_to_decoder is not None
    visible_BK, masked_BM = _split()
    mae.decoder = nn.ModuleList()
    encoded_BKD = torch.randn(2, 3, 24)
    decoded_BME = mae.decode(encoded_BKD, visible_BK, masked_BM)
    mean_BE = encoded_BKD.mean(1) @ mae.global_to_decoder.weight.T + mae.global_to_decoder.bias
    expected_BME = mae.mask_token + mae.decoder_position_NE[masked_BM] + mean_BE[:, None]
    torch.testing.assert_close(decoded_BME, expected_BME)


def test_the_normalized_target_has_mean_0_and_deviation_1_in_each_channel_of_each_token() -> None:
    patches_BMP = torch.randn(2, 5, P)
    target_BMP, mean_BMC, scale_BMC = _mae().target(patches_BMP)
    target_BMCQ = target_BMP.view(2, 5, 3, P // 3)
    torch.testing.assert_close(target_BMCQ.mean(3), torch.zeros(2, 5, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(target_BMCQ.std(3), torch.ones(2, 5, 3), rtol=1e-4, atol=0)
    pixels_BMP = target_BMP * per_pixel(scale_BMC, P) + per_pixel(mean_BMC, P)
    torch.testing.assert_close(pixels_BMP, patches_BMP * per_pixel(DEVIATION, P) + per_pixel(MEAN, P))


def test_the_floored_target_of_a_flat_token_is_zero_and_of_a_faint_one_is_faint() -> None:
    pixels_BMCQ = torch.full((1, 2, 3, P // 3), 0.5)
    # 32 pixels a channel, half of them 0.01 above and half 0.01 below the mean: deviation about 0.01.
    pixels_BMCQ[0, 1, :, ::2] += 0.01
    pixels_BMCQ[0, 1, :, 1::2] -= 0.01
    patches_BMP = ((pixels_BMCQ - MEAN[:, None]) / DEVIATION[:, None]).flatten(2)
    target_BMP, _, scale_BMC = _mae(target="floored", target_floor=0.1).target(patches_BMP)
    torch.testing.assert_close(target_BMP[0, 0], torch.zeros(P), rtol=0, atol=1e-5)
    torch.testing.assert_close(target_BMP[0, 1].abs(), torch.full((P,), 0.1), rtol=1e-4, atol=0)
    assert scale_BMC.unique().tolist() == pytest.approx([0.1])
    # VideoMAE's makes the faint one as loud as any: 0.01 over sqrt(32/31) * 0.01.
    loud_BMP, _, _ = _mae().target(patches_BMP)
    assert loud_BMP[0, 1].abs().mean().item() == pytest.approx((31 / 32) ** 0.5, rel=1e-3)


def test_the_pixel_target_is_what_the_encoder_sees() -> None:
    patches_BMP = torch.randn(1, 2, P)
    target_BMP, mean_BMC, scale_BMC = _mae(target="pixel").target(patches_BMP)
    assert torch.equal(target_BMP, patches_BMP)
    reconstruction = Reconstruction(target_BMP + 1, target_BMP, mean_BMC, scale_BMC, tubelet=2)
    torch.testing.assert_close(reconstruction.error_BM, torch.ones(1, 2))
    assert torch.equal(reconstruction.pixels_BMP, patches_BMP + 1)


@pytest.mark.parametrize("target", ["pixel", "normalized", "floored"])
def test_a_prediction_of_the_target_is_the_pixels_that_the_encoder_sees(target: str) -> None:
    patches_BMP = torch.randn(2, 5, P)
    target_BMP, mean_BMC, scale_BMC = _mae(target=target).target(patches_BMP)
    reconstruction = Reconstruction(target_BMP, target_BMP, mean_BMC, scale_BMC, tubelet=2)
    torch.testing.assert_close(reconstruction.pixels_BMP, patches_BMP)


def test_an_error_that_stays_the_same_within_the_tubelet_is_not_reweighted() -> None:
    assert _reconstruction([1, 1, 1, 1, 1, 1], motion_weight=5).error_BM.item() == 1


def test_an_error_that_changes_within_the_tubelet_counts_motion_weight_times() -> None:
    assert _reconstruction([1, -1, 1, -1, 1, -1], motion_weight=5).error_BM.item() == 5


def test_a_mixed_error_is_split_into_its_mean_and_its_change() -> None:
    # Frames 2 and 0: mean 1, change +1 and -1; the plain error is (4 + 0) / 2 = 2 = 1 + 1.
    assert _reconstruction([2, 0, 2, 0, 2, 0], motion_weight=1).error_BM.item() == 2
    assert _reconstruction([2, 0, 2, 0, 2, 0], motion_weight=5).error_BM.item() == 6


@settings(max_examples=20)
@given(st.floats(1, 20), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_the_weighted_error_is_linear_in_the_weight(weight: float, tubelet: int, seed: int) -> None:
    difference = torch.randn(2, 3, tubelet * 12, generator=torch.Generator().manual_seed(seed)).double()
    zero = torch.zeros_like(difference)

    def error(motion_weight: float) -> torch.Tensor:
        return Reconstruction(difference, zero, zero, zero, tubelet, motion_weight).error_BM

    # Exactly the change is added: two points of a line give a third.
    expected = error(1.0) + (weight - 1) * (error(2.0) - error(1.0))
    torch.testing.assert_close(error(weight), expected, rtol=1e-5, atol=1e-5)
    assert (error(weight) >= error(1.0) - 1e-6).all()


def test_the_hand_derived_gradient_of_the_error_is_that_of_finite_differences() -> None:
    prediction, target = torch.randn(2, 1, 2, 12, dtype=torch.float64).unbind(0)
    weight_BM = torch.randn(1, 2, dtype=torch.float64)

    def weighted(prediction: torch.Tensor) -> torch.Tensor:
        return (_SquaredError.apply(prediction, target) * weight_BM).sum()

    leaf = prediction.clone().requires_grad_()
    weighted(leaf).backward()
    assert leaf.grad is not None
    for index in range(24):
        step = torch.zeros(24, dtype=torch.float64)
        step[index] = 1e-5
        slope = (
            weighted(prediction + step.view(1, 2, 12)) - weighted(prediction - step.view(1, 2, 12))
        ) / 2e-5
        assert leaf.grad.flatten()[index].item() == pytest.approx(slope.item(), abs=1e-8)


def test_decoding_a_part_of_the_masked_tokens_gives_the_errors_of_that_part() -> None:
    mae = _mae()
    visible_BK, masked_BM = _split()
    patches_BNP = torch.randn(2, N, P)
    part = mae(patches_BNP, visible_BK, masked_BM[:, :2])
    whole_target_BMP, _, _ = mae.target(take(patches_BNP, masked_BM))
    assert part.error_BM.shape == (2, 2)
    torch.testing.assert_close(part.target_BMP, whole_target_BMP[:, :2])


def test_gradient_checkpointing_recomputes_the_decoder_too_and_changes_no_gradient() -> None:
    gradients, runs = [], []
    for checkpointing in (False, True):
        mae = _mae(gradient_checkpointing=checkpointing)
        counted: list[str] = []
        for name, block in (("encoder", mae.encoder.blocks[0]), ("decoder", mae.decoder[0])):
            block.register_forward_pre_hook(lambda *_, name=name, counted=counted: counted.append(name))
        patches_BNP = torch.randn(2, N, P, generator=torch.Generator().manual_seed(0))
        mae(patches_BNP, *_split()).error_BM.mean().backward()
        gradients.append([p.grad for p in mae.parameters()])
        runs.append(sorted(counted))
    assert runs == [["decoder", "encoder"], ["decoder"] * 2 + ["encoder"] * 2]
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_a_decoder_width_that_its_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"decoder_width \(16\) must be a multiple of decoder_heads \(3\)"
    ):
        MAEConfig(decoder_width=16, decoder_heads=3)


def test_the_loss_reaches_every_parameter() -> None:
    mae = _mae(global_token=True)
    mae(torch.randn(2, N, P), *_split()).error_BM.mean().backward()
    assert [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_first_weights_are_those_of_videomaes_pre_training() -> None:
    torch.manual_seed(0)
    vit = ViTConfig.model_validate({"preset": "vit_micro", "width": 48, "depth": 1, "heads": 3})
    mae = VideoMAE(vit, MAEConfig(decoder_width=256, decoder_depth=1, decoder_heads=2), CLIP)
    # modeling_pretrain.py: `_init_weights` of encoder and decoder draws Xavier's, sqrt(6 / (in + out)), ...
    for layer, fans in (
        (mae.encoder.blocks[0].attn.qkv, 48 + 144),
        (mae.decoder[0].mlp.fc1, 256 + 1024),
        (mae.to_pixels, 256 + P),
    ):
        assert 0.99 * (6 / fans) ** 0.5 < layer.weight.abs().max() <= (6 / fans) ** 0.5
        assert layer.weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.03)
        assert not layer.bias.any()
    # ... encoder_to_decoder, outside both, keeps PyTorch's: uniform in +-1 / sqrt(in), ...
    assert 0.99 * 48**-0.5 < mae.to_decoder.weight.abs().max() <= 48**-0.5
    assert mae.to_decoder.weight.std().item() == pytest.approx(144**-0.5, rel=0.03)
    # ... and the mask token's normal is cut at one deviation, which leaves .5396 of it.
    assert mae.mask_token.abs().max() <= 0.02
    assert mae.mask_token.std().item() == pytest.approx(0.5396 * 0.02, rel=0.1)
