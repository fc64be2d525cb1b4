"""What we are compared with."""

from __future__ import annotations

import math

import torch
from measure import Step
from torch import Tensor
from torch.nn import functional
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from tats_core.models.tokens import ClipConfig
from tats_core.models.vit import ViTConfig
from tats_core.sampling.trajectory_attention import TrajectoryAttention


def _config(vit: ViTConfig, clip: ClipConfig, **more: object) -> VideoMAEConfig:
    return VideoMAEConfig(
        image_size=clip.size,
        patch_size=clip.patch,
        num_frames=clip.frames,
        tubelet_size=clip.tubelet,
        hidden_size=vit.width,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        intermediate_size=int(vit.width * vit.mlp_ratio),
        **more,
    )


def hf_pretrain(vit: ViTConfig, clip: ClipConfig, batch: int, visible: int, device: torch.device) -> Step:
    """Hugging Face's VideoMAE as published: no sampler, the full decoder, fused AdamW as ours."""
    torch.manual_seed(0)
    model = VideoMAEForPreTraining(_config(vit, clip)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    video_BTCHW = torch.randn(batch, clip.frames, 3, clip.size, clip.size, device=device)
    masked_BN = torch.ones(batch, clip.tokens, dtype=torch.bool, device=device)
    masked_BN[:, torch.randperm(clip.tokens)[:visible]] = False

    def step() -> None:
        optimizer.zero_grad()
        model(video_BTCHW, masked_BN).loss.backward()
        optimizer.step()

    return step


def hf_finetune(vit: ViTConfig, clip: ClipConfig, batch: int, classes: int, device: torch.device) -> Step:
    """Hugging Face's VideoMAE classifier."""
    torch.manual_seed(0)
    model = VideoMAEForVideoClassification(_config(vit, clip, num_labels=classes)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    video_BTCHW = torch.randn(batch, clip.frames, 3, clip.size, clip.size, device=device)
    label_B = torch.arange(batch, device=device) % classes

    def step() -> None:
        optimizer.zero_grad()
        model(video_BTCHW, labels=label_B).loss.backward()
        optimizer.step()

    return step


def literal_trajectory_attention(attention: TrajectoryAttention, tokens_BND: Tensor) -> Tensor:
    """Motionformer's equations 4 to 7 as written, with batched matrix products: every path is projected."""
    b, n, d = tokens_BND.shape
    h, f = attention.heads, attention.slices
    e, s = d // h, n // f
    query_BHNE, key_BHNE, value_BHNE = attention.qkv(tokens_BND).view(b, n, 3, h, e).permute(2, 0, 3, 1, 4)
    score_BHNN = query_BHNE @ key_BHNE.transpose(-1, -2) / math.sqrt(e)
    alike_BHFNS = score_BHNN.view(b, h, n, f, s).softmax(-1).transpose(2, 3)
    path_BHFNE = alike_BHFNS @ value_BHNE.reshape(b, h, f, s, e)
    path_BNFD = path_BHFNE.permute(0, 3, 2, 1, 4).reshape(b, n, f, d)
    own_BND = path_BNFD.view(b, f, s, f, d).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(b, n, d)
    query_BNH1E = attention.temporal_query(own_BND).view(b, n, h, 1, e) / math.sqrt(e)
    key_BNFD = functional.linear(path_BNFD, attention.temporal_key.weight)
    value_BNFD = attention.temporal_value(path_BNFD) if attention.temporal_value is not None else path_BNFD
    key_BNHFE, value_BNHFE = (x.view(b, n, f, h, e).transpose(2, 3) for x in (key_BNFD, value_BNFD))
    weight_BNH1F = (query_BNH1E @ key_BNHFE.transpose(-1, -2)).softmax(-1)
    along_BND: Tensor = attention.out((weight_BNH1F @ value_BNHFE).reshape(b, n, d))
    return along_BND
