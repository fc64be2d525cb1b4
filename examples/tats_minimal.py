"""TATS in one file: a masked video autoencoder, and a sampler that learns by PPO which tokens to show it.

    python examples/tats_minimal.py        a minute on 2 cores; needs PyTorch alone, draws its own clips

Method: arXiv 2505.08561. It stands on VideoMAE (2203.12602: the autoencoder), Motionformer (2106.05392:
trajectory attention), AdaMAE (2211.09120: reconstruction error as reward) and PPO (1707.06347). `tats_core`
computes the same, and adds what real videos, many GPUs and fair comparisons need. A tensor's name ends in its
axes:

    B clips   T frames   F = T/2 slices   S patches of a slice   N = F*S tokens   K visible, M = N-K masked
    P pixel values of a token   D, E widths of encoder and decoder   H heads   A = D/H width of a head
"""

import argparse
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAMES, SIZE, TUBELET, PATCH = 8, 32, 2, 4
F, S = FRAMES // TUBELET, (SIZE // PATCH) ** 2
N, P = F * S, 3 * TUBELET * PATCH**2
K = round((1 - 0.9) * N)  # mask ratio 0.9: the encoder sees a tenth of the tokens
BATCH, EPOCHS, MINIBATCHES = 16, 1, 4  # PPO makes EPOCHS passes over each batch, in MINIBATCHES steps each
CLIP, VALUE_WEIGHT = 0.2, 0.5  # epsilon and c_v of PPO
SPREAD = 1.5  # the policy stays open enough for so many times K tokens
KL_STOP = 0.05  # an update ends when the policy has moved so far, in nats
MAX_WEIGHT = 10  # a token that seldom stays masked counts for more when it does, but at most so much
FLOOR = 0.2  # deviation of pixels below which a token counts as flat


# --- data: a textured disc crosses a smooth background that stands still ---------------------------------


def draw_clips(clips: int) -> Tensor:
    """Videos in about [-2, 2], cut into tokens of pixels `[B, N, P]`."""
    still = functional.interpolate(torch.rand(clips, 3, 3, 3), SIZE, mode="bilinear", align_corners=True)
    texture = functional.interpolate(torch.rand(clips, 3, SIZE // 2, SIZE // 2), SIZE)
    angle, start = torch.rand(clips, 1) * 2 * math.pi, torch.rand(clips, 2, 1) * SIZE
    centre_B2T = start + 2.5 * torch.stack([angle.sin(), angle.cos()], 1) * torch.arange(FRAMES)
    # Offset of each row and column from the centre, on a torus: what leaves on the right enters on the left.
    offset_B2TX = (torch.arange(SIZE) - centre_B2T[..., None] + SIZE / 2) % SIZE - SIZE / 2
    y_BTH1, x_BT1W = offset_B2TX[:, 0, :, :, None], offset_B2TX[:, 1, :, None, :]
    row, column = (y_BTH1 + SIZE / 2).long(), (x_BT1W + SIZE / 2).long()
    disc_BCTHW = texture[torch.arange(clips)[:, None, None, None], :, row, column].permute(0, 4, 1, 2, 3)
    inside_B1THW = (y_BTH1.square() + x_BT1W.square() < 5**2)[:, None]
    video_BCTHW = torch.where(inside_B1THW, disc_BCTHW, 0.3 + 0.4 * still[:, :, None])
    side = SIZE // PATCH
    cut = ((video_BCTHW - 0.5) / 0.25).view(clips, 3, F, TUBELET, side, PATCH, side, PATCH)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(clips, N, P)


def motion(patches_BNP: Tensor) -> Tensor:
    """How much each token changes between its two frames: `[B, N]`."""
    first, second = patches_BNP.view(-1, N, 3, TUBELET, PATCH**2).unbind(3)
    return (second - first).abs().mean((2, 3))


# --- the masked autoencoder: encode what is visible, predict the pixels of the rest ----------------------


def positions(width: int) -> Tensor:
    """Fixed sine-cosine codes of slice, row and column, a third of the width each: `[N, width]`."""
    side, sixth = SIZE // PATCH, width // 6
    axes = torch.meshgrid(torch.arange(F), torch.arange(side), torch.arange(side), indexing="ij")
    angle_3NX = torch.stack(axes).view(3, N, 1) / 100 ** (torch.arange(sixth) / sixth)
    return torch.cat([*angle_3NX.sin(), *angle_3NX.cos()], 1)


def transformer(width: int, depth: int) -> nn.TransformerEncoder:
    """Pre-norm blocks of attention and MLP, then a norm."""
    block = nn.TransformerEncoderLayer(
        width, 2, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, depth, nn.LayerNorm(width, eps=1e-6), enable_nested_tensor=False)


def take(values_BNX: Tensor, index_BK: Tensor) -> Tensor:
    """Pick tokens by index: `[B, K, X]`."""
    return values_BNX.gather(1, index_BK[..., None].expand(-1, -1, values_BNX.shape[-1]))


class MAE(nn.Module):
    """The encoder never sees a masked token, so it costs a tenth; the decoder sees all, and is small."""

    position_ND: Tensor
    decoder_position_NE: Tensor

    def __init__(self, width: int = 96, depth: int = 3, decoder_width: int = 48) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Linear(P, width), transformer(width, depth)
        self.to_decoder = nn.Linear(width, decoder_width, bias=False)
        self.decoder, self.to_pixels = transformer(decoder_width, 1), nn.Linear(decoder_width, P)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        self.register_buffer("position_ND", positions(width))
        self.register_buffer("decoder_position_NE", positions(decoder_width))

    def forward(self, patches_BNP: Tensor, visible_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Prediction minus pixels of the masked tokens `[B, M, P]`; the loss is its mean square."""
        encoded_BKD = self.encoder(take(self.embed(patches_BNP) + self.position_ND, visible_BK))
        visible_BKE = self.to_decoder(encoded_BKD) + self.decoder_position_NE[visible_BK]
        masked_BME = self.mask_token + self.decoder_position_NE[masked_BM]
        decoded_BNE = self.decoder(torch.cat([visible_BKE, masked_BME], 1))
        prediction_BMP = self.to_pixels(decoded_BNE[:, visible_BK.shape[1] :])
        return prediction_BMP - take(patches_BNP, masked_BM)


# --- the sampler: trajectory attention, then an actor and a critic ---------------------------------------


class TrajectoryAttention(nn.Module):
    """A token first finds itself in every slice, then attends along that path (Motionformer, eq. 4-7).

    Written as in the paper, with projections of all N*F points; `tats_core` gets the same without them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.temporal_query, self.temporal_value = nn.Linear(width, width), nn.Linear(width, width)
        self.temporal_key = nn.Linear(width, width, bias=False)  # a bias would drop out of the softmax
        self.out = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, N, D]`."""
        b, h = len(tokens_BND), self.heads
        query_BNHA, key_BNHA, value_BNHA = self.qkv(tokens_BND).view(b, N, 3, h, -1).unbind(2)
        # Eq. 4-5: a softmax over the S tokens of each slice. Where in slice f is what this token shows?
        key_BFSHA, value_BFSHA = key_BNHA.view(b, F, S, h, -1), value_BNHA.view(b, F, S, h, -1)
        score_BHNFS = torch.einsum("bnha,bfsha->bhnfs", query_BNHA * self.scale, key_BFSHA)
        path_BNFD = torch.einsum("bhnfs,bfsha->bnfha", score_BHNFS.softmax(-1), value_BFSHA).flatten(3)
        # Eq. 6: the query is the path's point in the token's own slice; keys and values are all points.
        own_BND = path_BNFD[:, torch.arange(N), torch.arange(N) // S]
        query_BNHA = self.temporal_query(own_BND).view(b, N, h, -1) * self.scale
        key_BNFHA = self.temporal_key(path_BNFD).view(b, N, F, h, -1)
        value_BNFHA = self.temporal_value(path_BNFD).view(b, N, F, h, -1)
        # Eq. 7: a softmax over the F points of the path.
        weight_BNHF = torch.einsum("bnha,bnfha->bnhf", query_BNHA, key_BNFHA).softmax(-1)
        return self.out(torch.einsum("bnhf,bnfha->bnha", weight_BNHF, value_BNFHA).flatten(2))


class Sampler(nn.Module):
    """The policy, how much each token should be seen, and the clip's value: the reward to be expected."""

    def __init__(self, encoder_width: int = 96, width: int = 48, heads: int = 2) -> None:
        super().__init__()
        self.project, self.attention = nn.Linear(encoder_width, width), TrajectoryAttention(width, heads)
        # The fixed positions are as large as what the tokens show, and would hide it: it learns its own.
        self.position_NW = nn.Parameter(torch.zeros(N, width))
        self.enter, self.norm1, self.norm2, self.norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.actor, self.critic = nn.Linear(width, 1, bias=False), nn.Linear(width, 1)
        for head in (self.actor, self.critic):
            nn.init.normal_(head.weight, std=0.01)  # the first policy is nearly uniform: random masking

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of drawing each token first `[B, N]`, and the clip's value `[B]`."""
        # Detached: the sampler's gradients never reach the autoencoder.
        x_BND = self.enter(self.project(tokens_BND.detach())) + self.position_NW
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        x_BND = self.norm(x_BND + self.mlp(self.norm2(x_BND)))
        return hold_entropy(self.actor(x_BND).squeeze(2)).log_softmax(1), self.critic(x_BND).mean((1, 2))


def entropy(logits_BN: Tensor) -> Tensor:
    """H of the softmax, in nats: `[B, 1]`."""
    log_probs_BN = logits_BN.log_softmax(1)
    return -(log_probs_BN.exp() * log_probs_BN).sum(1, keepdim=True)


def hold_entropy(logits_BN: Tensor) -> Tensor:
    """Divide the logits by the temperature, at least 1, at which they spread over SPREAD * K tokens.

    Unbounded, the policy soon shows the same few tokens, and never learns what others would earn.
    """
    lowest, scores_BN = math.log(SPREAD * K), logits_BN.detach()
    low_B1 = torch.zeros(len(scores_BN), 1)  # bisect the logarithm of the temperature
    high_B1 = (1 + 100 * (scores_BN.amax(1, True) - scores_BN.amin(1, True))).log()
    for _ in range(30):
        middle_B1 = (low_B1 + high_B1) / 2
        is_sharper_B1 = entropy(scores_BN / middle_B1.exp()) < lowest
        low_B1 = torch.where(is_sharper_B1, middle_B1, low_B1)
        high_B1 = torch.where(is_sharper_B1, high_B1, middle_B1)
    tau_B1 = torch.where(entropy(scores_BN) < lowest, high_B1.exp(), 1.0)
    # Its gradient is -dH / (dH/dtau) (implicit function theorem), with dH/dtau = Var_pi(logits / tau) / tau.
    held_BN = scores_BN / tau_B1
    mean_B1 = (held_BN.softmax(1) * held_BN).sum(1, keepdim=True)
    slope_B1 = (held_BN.softmax(1) * (held_BN - mean_B1).square()).sum(1, keepdim=True) / tau_B1
    moved_B1 = (entropy(logits_BN / tau_B1) - entropy(held_BN)) / slope_B1.clamp_min(1e-12)
    return logits_BN / torch.where(tau_B1 > 1, tau_B1 - moved_B1, tau_B1)


def draw(log_probs_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Draw K tokens without replacement: visible `[B, K]` and masked `[B, M]` indices.

    The K largest of log-probability plus Gumbel noise are exactly such a draw (arXiv 1903.06059).
    """
    gumbel_BN = -torch.log(-torch.log(torch.rand_like(log_probs_BN).clamp_min(1e-30)))
    order_BN = (log_probs_BN + gumbel_BN).argsort(1, descending=True)
    return order_BN[:, :K], order_BN[:, K:]


def weights(log_probs_BN: Tensor, masked_BM: Tensor) -> Tensor:
    """How much the reward of each masked token counts: 1 / P(it stays masked), with mean 1 in a clip.

    Only masked tokens earn, and what the policy likes seldom is one; so all tokens count alike on average.
    A token with probability pi stays masked with exp(-t pi), at the t for which K do not (Rosen 1972).
    """
    t_B1, prob_BN = torch.full((len(log_probs_BN), 1), float(K)), log_probs_BN.exp()
    for _ in range(10):  # Newton's steps for sum (1 - exp(-t pi)) = K
        silent_BN = (-t_B1 * prob_BN).exp()
        t_B1 = t_B1 + (K - N + silent_BN.sum(1, True)) / (prob_BN * silent_BN).sum(1, True)
    weight_BM = (t_B1 * prob_BN).exp().gather(1, masked_BM).clamp(max=MAX_WEIGHT)
    return weight_BM / weight_BM.mean(1, True)


# --- PPO: what moves and was hard to reconstruct becomes likelier to be seen ------------------------------


def reward(patches_BNP: Tensor, difference_BMP: Tensor, masked_BM: Tensor, weight_BM: Tensor) -> Tensor:
    """1 for the tenth of the tokens that moved most and were reconstructed worst, 0 for others: `[B, M]`.

    The share of a token's variance that is left unexplained (but for its mean colour), times its change to
    the next frame over that variance: about the squared speed, whatever brightness and contrast. The tenth
    is one of the weight, and so are mean 0 and deviation 1, to which a clip is scaled.
    """
    frames_BFSCTQ = patches_BNP.view(len(patches_BNP), F, S, 3, TUBELET, PATCH**2)
    variance_BN = frames_BFSCTQ.var(-1, correction=0).mean((3, 4)).flatten(1) + FLOOR**2
    line_BSCXQ = frames_BFSCTQ.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)  # the X=F*T frames of a place
    change_BSX = line_BSCXQ.diff(dim=3).square().mean((2, 4))
    change_BSX = torch.cat([change_BSX, change_BSX[:, :, -1:]], 2)
    change_BN = change_BSX.unflatten(2, (F, TUBELET)).mean(3).transpose(1, 2).flatten(1)
    error_BM = difference_BMP.unflatten(2, (3, -1)).var(3, correction=0).mean(2)
    earned_BM = error_BM * (change_BN / variance_BN.square()).gather(1, masked_BM)
    order_BM = earned_BM.argsort(dim=1, descending=True)
    sorted_BM = weight_BM.gather(1, order_BM)
    left_BM = K / N * weight_BM.sum(1, True) - sorted_BM.cumsum(1) + sorted_BM  # of the tenth, for each token
    reward_BM = torch.zeros_like(earned_BM).scatter(1, order_BM, (left_BM / sorted_BM).clamp(0, 1))
    reward_BM = reward_BM - (weight_BM * reward_BM).mean(1, True)
    return reward_BM / (weight_BM * reward_BM.square()).mean(1, True).sqrt()


class Transition(NamedTuple):
    """What a batch leaves for PPO: state, action, reward, and what the old policy made of them."""

    tokens_BND: Tensor
    masked_BM: Tensor
    reward_BM: Tensor
    weight_BM: Tensor
    old_log_probs_BN: Tensor
    old_value_B: Tensor


def ppo_loss(sampler: Sampler, batch: Transition, advantage_BM: Tensor) -> tuple[Tensor, dict[str, float]]:
    """L = -E[w min(r A, clip(r, 1-eps, 1+eps) A)] + c_v (V - R)^2 (PPO, eq. 7 and 9)."""
    log_probs_BN, value_B = sampler(batch.tokens_BND)
    log_ratio_BN = log_probs_BN - batch.old_log_probs_BN
    # Bounded: exp must not overflow, nor a single token be the whole gradient (arXiv 1912.09729).
    ratio_BM = log_ratio_BN.gather(1, batch.masked_BM).clamp(max=2).exp()
    surrogate_BM = torch.minimum(ratio_BM * advantage_BM, ratio_BM.clamp(1 - CLIP, 1 + CLIP) * advantage_BM)
    value_loss = (value_B - batch.reward_BM.mean(1)).square().mean()
    loss = -(batch.weight_BM * surrogate_BM).mean() + VALUE_WEIGHT * value_loss
    health = {
        "entropy": entropy(log_probs_BN).mean() / math.log(N),
        "kl": -(batch.old_log_probs_BN.exp() * log_ratio_BN).sum(1).mean(),
        "clipped": ((ratio_BM - 1).abs() > CLIP).float().mean(),
        "first_ratio": ratio_BM.mean(),
    }
    return loss, {name: value.item() for name, value in health.items()}


def ppo_update(sampler: Sampler, optimizer: torch.optim.Optimizer, batch: Transition) -> dict[str, float]:
    """EPOCHS passes over the batch in MINIBATCHES steps; return the health of the last and first step.

    Before the first step new and old policy are one, so its ratio is exactly 1; then they part.
    """
    # The baseline is one value a clip: a critic of each token's error would leave nothing to learn from.
    advantage_BM = batch.reward_BM - batch.old_value_B[:, None]
    advantage_BM = (advantage_BM - advantage_BM.mean()) / advantage_BM.std()
    health = []
    for _ in range(EPOCHS):
        for index in torch.randperm(len(advantage_BM)).chunk(MINIBATCHES):
            part = Transition(*(values[index] for values in batch))
            loss, figures = ppo_loss(sampler, part, advantage_BM[index])
            health.append(figures)
            if figures["kl"] > KL_STOP:
                return figures | {"first_ratio": health[0]["first_ratio"]}
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(sampler.parameters(), 1.0)
            optimizer.step()
    return health[-1] | {"first_ratio": health[0]["first_ratio"]}


# --- joint training ---------------------------------------------------------------------------------------


def train(steps: int, seed: int = 0, every: int = 20) -> list[dict[str, float]]:
    """Train autoencoder and sampler together; print and return loss, lift and PPO's health."""
    torch.manual_seed(seed)
    mae, sampler = MAE(), Sampler()
    mae_optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    sampler_optimizer = torch.optim.AdamW(sampler.parameters(), lr=5e-4, weight_decay=0.0)
    history: list[dict[str, float]] = []
    losses, lifts, began = [], [], time.perf_counter()
    for step in range(1, steps + 1):
        patches_BNP = draw_clips(BATCH)
        with torch.no_grad():  # 1. the old policy chooses what is visible
            tokens_BND = mae.embed(patches_BNP)
            log_probs_BN, value_B = sampler(tokens_BND)
            visible_BK, masked_BM = draw(log_probs_BN)
        difference_BMP = mae(patches_BNP, visible_BK, masked_BM)  # 2. the autoencoder learns from it
        loss = difference_BMP.square().mean()
        mae_optimizer.zero_grad()
        loss.backward()
        mae_optimizer.step()
        # 3. and the policy from what the errors of masked tokens earn
        weight_BM = weights(log_probs_BN, masked_BM)
        reward_BM = reward(patches_BNP, difference_BMP.detach(), masked_BM, weight_BM)
        transition = Transition(tokens_BND, masked_BM, reward_BM, weight_BM, log_probs_BN, value_B)
        health = ppo_update(sampler, sampler_optimizer, transition)
        # Motion lift: motion of the visible tokens over motion of all; 1 for random masking.
        motion_BN = motion(patches_BNP)
        lifts.append((motion_BN.gather(1, visible_BK).mean() / motion_BN.mean()).item())
        losses.append(loss.item())
        if step % every == 0:
            recent = {"loss": sum(losses[-every:]) / every, "motion_lift": sum(lifts[-every:]) / every}
            history.append({"step": step, **recent, **health})
            line = "  ".join(f"{name} {value:.3g}" for name, value in history[-1].items())
            print(f"{time.perf_counter() - began:4.0f} s  {line}", flush=True)
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the method on clips that are drawn here.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.steps, arguments.seed)
