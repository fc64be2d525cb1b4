"""Drawing K of N tokens without replacement, and how likely a draw was.

Axes: B clips, N tokens, K drawn.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_NEWTON_STEPS: Final = 10  # enough for logits with a deviation of 10


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Return K, the visible tokens of a clip of N `tokens`: `max(1, round((1 - mask_ratio) * N))`.

    One rule for every sampler; published code rounds in different directions (of 1568 tokens at 0.95:
    80, 78), which makes comparisons across samplers unfair.
    """
    return max(1, round((1 - mask_ratio) * tokens))


class Noise:
    """Uniform noise for one worker's clips: its rows of one draw for the global batch.

    Row i of a worker's batch is row ``i * workers + rank`` of the global one, as the loader deals out the
    clips; so what is drawn for a clip does not depend on how many workers share the batch.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, workers: int = 1) -> None:
        self.generator, self.rank, self.workers = generator, rank, workers

    def uniform(self, clips: int, columns: int) -> Tensor:
        """`[clips, columns]` of numbers in [0, 1) for this worker's `clips`."""
        device = self.generator.device
        drawn = torch.rand(clips * self.workers, columns, generator=self.generator, device=device)
        return drawn[self.rank :: self.workers]

    def seed(self) -> int:
        """A seed for another generator, this worker's own."""
        device = self.generator.device
        return self.rank + int(torch.randint(2**48, (), generator=self.generator, device=device))


def gumbel_top_k(logits_BN: Tensor, k: int, uniform_BN: Tensor) -> Tensor:
    """Draw `k` tokens a clip without replacement, in order: indices `[B, K]`.

    The K largest of logits plus Gumbel noise are exactly an ordered draw without replacement from
    softmax(logits) (Kool et al. 2019, arXiv 1903.06059): one pass, no loop. The noise is made of
    `uniform_BN`, numbers in [0, 1).
    """
    # They may be exactly 0; their float32 grid ends at 1 - 2^-24, so the outer log is finite.
    gumbel_BN = -torch.log(-torch.log(uniform_BN.clamp_min(torch.finfo(torch.float32).tiny)))
    return (logits_BN.float() + gumbel_BN).topk(k, dim=1).indices


def ordered_log_probs(logits_BN: Tensor, order_BK: Tensor) -> Tensor:
    """Log-probability of each pick given the ones before it, `[B, K]` (Plackett-Luce).

    `log pi(o_k | o_<k) = l(o_k) - logsumexp of the logits of what is not yet drawn`; their sum over k is
    the log-probability of the ordered draw.
    """
    logits_BN = logits_BN.float()
    picked_BK = logits_BN.gather(1, order_BK)
    drawn_BN = torch.zeros_like(logits_BN, dtype=torch.bool).scatter(1, order_BK, True)
    rest_B1 = logits_BN.masked_fill(drawn_BN, -torch.inf).logsumexp(1, keepdim=True)
    # What is left before pick k: the tokens never drawn and the picks k..K, summed from the end.
    later_BK = picked_BK.flip(1).logcumsumexp(1).flip(1)
    return picked_BK - torch.logaddexp(later_BK, rest_B1)


def masked_chances(logits_BN: Tensor, k: int) -> Tensor:
    """How likely a draw of `k` is to leave each token masked, `[B, N]`, to about a hundredth.

    A draw is the first k to ring of N clocks whose alarms come at the rates pi. At the time t by which k have
    rung on average, token i is still silent with probability exp(-t pi_i) (Rosen 1972). t solves
    `sum_i (1 - exp(-t pi_i)) = k`; the sum is concave in t and at most t, so Newton's steps from t = k never
    pass the solution.
    """
    probs_BN = logits_BN.float().softmax(1)
    time_B1 = torch.full_like(probs_BN[:, :1], float(k))
    for _ in range(_NEWTON_STEPS):
        silent_BN = (-time_B1 * probs_BN).exp()
        missing_B1 = k - (1 - silent_BN).sum(1, keepdim=True)
        # The slope is 0 in float32 where k tokens have all the probability.
        time_B1 = time_B1 + missing_B1 / (probs_BN * silent_BN).sum(1, keepdim=True).clamp_min(1e-9)
    return (-time_B1 * probs_BN).exp()


def complement(visible_BK: Tensor, tokens: int) -> Tensor:
    """Return the N-K indices that are not in `visible_BK`, ascending: `[B, M]`."""
    # Not by `nonzero`, whose size a GPU must report first: the smallest of the indices where the drawn are N.
    index_BN = torch.arange(tokens, device=visible_BK.device).repeat(len(visible_BK), 1)
    index_BN.scatter_(1, visible_BK, tokens)
    return index_BN.topk(tokens - visible_BK.shape[1], dim=1, largest=False).values
