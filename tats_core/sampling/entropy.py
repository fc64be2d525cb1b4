"""How open a policy is, and a bound below it.

Axes: B clips, N tokens.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_HALVINGS: Final = 30  # of the interval of the temperature's logarithm: to a millionth of it


def entropy(logits_BN: Tensor) -> Tensor:
    """H of the softmax over N, `[B]`, in nats; log N where it is uniform."""
    log_probs_BN = logits_BN.log_softmax(1)
    return -(log_probs_BN.exp() * log_probs_BN).sum(1)


def hold_entropy(logits_BN: Tensor, lowest: float) -> Tensor:
    """Divide the logits of each clip by the lowest temperature, at least 1, that leaves them this entropy.

    A bonus on the entropy has to be weighed against the reward, and no fixed weight suits a whole training;
    a weight that a controller moves answers late, and at PPO's pace it swings between blind and collapsed
    (docs/lab-notes.md). Here a policy cannot be sharper than asked for: its scores rank the tokens, and their
    size matters only while the policy is more open than that.

    The gradient is exact, by the implicit function theorem: with the temperature tau(z) of
    `H(z / tau) = lowest`, `dtau/dz = -(dH/dz) / (dH/dtau)`. Where the bound holds, nothing depends on the
    scale of a clip's logits, and the gradient leaves it alone.

    Args:
        lowest: entropy in nats, below log N.
    """
    with torch.no_grad():
        scores_BN = logits_BN.detach()
        low_B = scores_BN.new_zeros(len(scores_BN))
        # So hot that the logits lie within a hundredth of each other: a uniform policy.
        high_B = (1 + 100 * (scores_BN.amax(1) - scores_BN.amin(1))).log()
        for _ in range(_HALVINGS):
            middle_B = (low_B + high_B) / 2
            is_sharper_B = entropy(scores_BN / middle_B.exp()[:, None]) < lowest
            low_B = torch.where(is_sharper_B, middle_B, low_B)
            high_B = torch.where(is_sharper_B, high_B, middle_B)
        holds_B = entropy(scores_BN) < lowest
        tau_B = torch.where(holds_B, high_B.exp(), torch.ones_like(high_B))
        # dH/dtau = Var_pi(z / tau) / tau
        held_BN = scores_BN / tau_B[:, None]
        probs_BN = held_BN.softmax(1)
        mean_B1 = (probs_BN * held_BN).sum(1, keepdim=True)
        slope_B = (probs_BN * (held_BN - mean_B1).square()).sum(1) / tau_B
    entropy_B = entropy(logits_BN / tau_B[:, None])
    moved_B = (entropy_B - entropy_B.detach()) / slope_B.clamp_min(1e-12)  # 0, with the gradient of tau
    tau_B = torch.where(holds_B, tau_B - moved_B, tau_B)
    return logits_BN / tau_B[:, None]
