"""One interface for every token sampler.

Axes: B clips, N tokens, K visible and M masked ones, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tats_core.errors import SpecError
from tats_core.sampling.entropy import entropy
from tats_core.sampling.plackett_luce import Noise, complement, gumbel_top_k, visible_count


@dataclass(frozen=True)
class Policy:
    """A sampler's scores of each clip's tokens; softmax over N of the logits is the policy pi."""

    logits_BN: Tensor
    value_BN: Tensor | None = None
    """The critic's per-token values; None for a sampler without a critic."""

    @classmethod
    def joined(cls, parts: Sequence[Policy]) -> Policy:
        """Join the policies of parts of a batch."""
        if len(parts) == 1:
            return parts[0]
        values = [part.value_BN for part in parts if part.value_BN is not None]
        return cls(torch.cat([part.logits_BN for part in parts]), torch.cat(values) if values else None)

    @property
    def value_B1(self) -> Tensor:
        """The value of each clip: the mean over its tokens.

        Raises:
            SpecError: the sampler has no critic.
        """
        if self.value_BN is None:
            raise SpecError(
                "the sampler's objective needs a critic, and its policy has no values: "
                "return Policy(logits_BN, value_BN), or train it by another objective"
            )
        return self.value_BN.mean(1, keepdim=True)

    @property
    def log_probs_BN(self) -> Tensor:
        """log pi(i) of drawing token i first."""
        return self.logits_BN.float().log_softmax(1)

    @property
    def entropy_B(self) -> Tensor:
        """H(pi), nats; log N for a uniform policy."""
        return entropy(self.logits_BN.float())


@dataclass(frozen=True)
class Rollout:
    """One draw for a batch of clips, and what drew it (None for samplers that learn nothing)."""

    visible_BK: Tensor
    """Indices of the visible tokens, in the order in which they were drawn."""
    masked_BM: Tensor
    """Indices of all other tokens, ascending."""
    tokens: int
    policy: Policy | None = None

    @property
    def visible_BN(self) -> Tensor:
        """True where a token is visible."""
        empty_BN = torch.zeros(
            self.visible_BK.shape[0], self.tokens, dtype=torch.bool, device=self.visible_BK.device
        )
        return empty_BN.scatter(1, self.visible_BK, True)


class Sampler(nn.Module, ABC):
    """Chooses the K visible tokens of each clip."""

    learns = False
    """True for a `LearnedSampler`: it draws from a policy, and there is something to train."""
    sees_positions = True
    """Whether the tokens that it is given carry the encoder's fixed positions."""

    def __init__(self, tokens: int, mask_ratio: float) -> None:
        super().__init__()
        self.tokens = tokens
        self.set_mask_ratio(mask_ratio)

    def set_mask_ratio(self, mask_ratio: float) -> None:
        """Change the ratio from the next draw on."""
        self.visible = visible_count(self.tokens, mask_ratio)
        if self.visible >= self.tokens:
            raise SpecError(
                f"sampler.mask_ratio {mask_ratio:g} leaves all {self.tokens} tokens of a clip visible and "
                "nothing to reconstruct; raise it"
            )

    @abstractmethod
    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        """Draw the visible tokens of `clips` clips; a learned sampler draws from `policy`."""

    @torch.no_grad()
    def act(self, tokens_BND: Tensor, generator: torch.Generator) -> Rollout:
        """Draw for clips embedded as `tokens_BND`, from the policy as it is now if there is one."""
        policy = self(tokens_BND) if self.learns else None
        return self.draw(len(tokens_BND), Noise(generator), policy)

    def rollout(self, visible_BK: Tensor, policy: Policy | None = None) -> Rollout:
        """Return the draw that shows the tokens `visible_BK`, K different ones of each clip."""
        return Rollout(visible_BK, complement(visible_BK, self.tokens), self.tokens, policy)


class LearnedSampler(Sampler):
    """A sampler with a policy: `forward` computes it with gradients."""

    learns = True

    @abstractmethod
    def forward(self, tokens_BND: Tensor) -> Policy:
        """Return the policy for clips embedded as `tokens_BND`."""

    def draw(self, clips: int, noise: Noise, policy: Policy | None = None) -> Rollout:
        """Draw by Gumbel-top-k."""
        assert policy is not None
        uniform_BN = noise.uniform(clips, self.tokens)
        return self.rollout(gumbel_top_k(policy.logits_BN.detach(), self.visible, uniform_BN), policy)
