"""Dynamic region refinement (sec. 4.2): L_dynamic = L_main + L_sub + L_diff1 + L_diff2 (eqs. 11-15)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd import losses, refine
from ssdd.config import DynamicConfig, NetworkConfig, TrainConfig
from ssdd.data.sampling import Sampling
from ssdd.nets import checkpoints
from ssdd.nets.networks import DynamicNet
from ssdd.objectives.crf import BatchCRF
from ssdd.objectives.task import Batch, Halfway, Losses
from ssdd.storage.artifacts import Artifact


@dataclass(frozen=True, kw_only=True)
class DynamicTask:
    """L_dynamic = L_main + L_sub + L_diff1 + L_diff2 (eq. 15)."""

    network: NetworkConfig
    dynamic: DynamicConfig
    classes: int
    start: Artifact
    crf: BatchCRF

    @property
    def train(self) -> TrainConfig:
        return self.dynamic.train

    @property
    def sampling(self) -> Sampling:
        size = self.network.mask_size(self.train.augment.crop)
        return Sampling(
            masks=("refined",), mask_size=size, augment=self.train.augment, num_classes=self.classes, plain=True
        )

    def build(self) -> DynamicNet:
        net = DynamicNet(self.network, self.classes)
        # DD-Net 2 starts from random weights: it judges m^D1, while the static stage's DD-Net has learned to judge the
        # advice of a CRF.
        checkpoints.load_start(net, self.start, {"main": "main", "sub": "main", "ddnet1": "ddnet"})
        return net

    @property
    def runs_on_actors(self) -> bool:
        return self.crf.runs_on_actors

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        labelled = losses.segmentation_counts(batch["refined"])
        return {"main": labelled, "sub": labelled.repeat(2)}

    def losses(self, net: DynamicNet, batch: Batch) -> Halfway:
        """Run the forward pass up to the CRF: the network's masks and the difference maps that need no advice."""
        presence, seed = batch["presence"], batch["refined"].long()
        features = net.features(batch["image"])
        logits, hidden = net.main(features.high)
        crf = self.crf.request(batch["plain"], logits.detach(), presence)
        knowledge = refine.presence_argmax(logits.detach(), presence)
        shared1 = net.difference_features(net.ddnet1, features, hidden)
        d_knowledge = net.ddnet1(shared1, knowledge)
        sub_logits, sub_hidden = net.sub(features.high)
        # If DD-Nets use a head's hidden layer, DD-Net 2 uses that of the sub branch, as in the published code.
        shared2 = net.difference_features(net.ddnet2, features, sub_hidden)
        first = BeforeCRF(
            presence=presence,
            seed=seed,
            logits=logits,
            knowledge=knowledge,
            shared1=shared1,
            d_knowledge=d_knowledge,
            sub_logits=sub_logits,
            shared2=shared2,
            d_seed=net.ddnet2(shared2, seed),
        )
        return Halfway(crf, lambda: self.losses_after_crf(net, first, crf.masks()))

    def losses_after_crf(self, net: DynamicNet, first: "BeforeCRF", advice: Tensor) -> Losses:
        """Compute both SSDD modules and the four losses.

        Args:
            net: the network.
            first: what `losses` has computed for the same images.
            advice: m^A1, the CRF masks of the network's probabilities, int64 (N, h, w).
        """
        config, presence, seed, knowledge = self.dynamic, first.presence, first.seed, first.knowledge

        # First module: the network's mask m^K1 and the CRF's mask m^A1 give m^D1 (eqs. 3-5).
        d_advice = net.ddnet1(first.shared1, advice)
        vanished = refine.vanished(knowledge, advice, presence, config.bad_ratio)
        d_k, d_a = _probability(first.d_knowledge), _probability(d_advice)
        refined1 = refine.module(d_k, d_a, knowledge, advice, presence, config.bias1)  # m^D1

        # Second module: m^D0 takes the place of knowledge and m^D1 that of advice; they give m^D2.
        d_refined = net.ddnet2(first.shared2, refined1)
        d_k, d_a = _probability(first.d_seed), _probability(d_refined)
        refined2 = refine.module(d_k, d_a, seed, refined1, presence, config.bias2)  # m^D2

        # The main branch always learns from m^D2. The sub branch learns from m^D0 and from the target: m^D1, or m^D2 if
        # `dynamic.target` is d2. DD-Net 2 is trained to predict where m^D0 and the target differ from the sub branch's
        # mask, not where they differ from each other. (For d2, the published code compares the sub branch with m^D2,
        # but its DD-Net 2 still gets m^D1.) The paper's reason for the sub branch (sec. 4.2): if the main branch once
        # predicts one class everywhere, the differences from the main branch's masks say nothing any more; the sub
        # branch lets the training escape from there.
        target = refined2 if config.target == "d2" else refined1
        sub_mask = refine.presence_argmax(first.sub_logits.detach(), presence)  # m^sub
        all_images = torch.ones(len(seed), dtype=torch.bool, device=seed.device)
        unlabelled = seed == 255  # these pixels get no label in the targets either
        main = losses.segmentation_loss(first.logits, refined2.masked_fill(unlabelled, 255))
        sub_seed = losses.segmentation_loss(first.sub_logits, seed)
        sub_target = losses.segmentation_loss(first.sub_logits, target.masked_fill(unlabelled, 255))
        difference = refine.difference(knowledge, advice)
        return {
            "main": main,  # eq. 11
            "sub": config.alpha * sub_seed + (1 - config.alpha) * sub_target,  # eq. 14
            "diff1": losses.difference_losses(first.d_knowledge, d_advice, difference, vanished),  # eq. 12
            "diff2": losses.difference_loss(first.d_seed, refine.difference(seed, sub_mask), all_images)
            + losses.difference_loss(d_refined, refine.difference(sub_mask, target), all_images),  # eq. 13
        }


def _probability(logits: Tensor) -> Tensor:
    """DD-Net's d for eq. 3, float32: in bfloat16, d^K and d^A would often be equal, and eq. 4 gives ties to advice."""
    return logits.detach().float().sigmoid()


@dataclass(frozen=True, kw_only=True)
class BeforeCRF:
    """Results of a dynamic training step for some images, before their CRF masks are ready."""

    presence: Tensor
    """bool (N, C), background included."""
    seed: Tensor
    """m^D0, the static stage's refined mask, int64 (N, h, w); 255 at pixels without a label."""
    logits: Tensor
    """The main branch's logits, (N, C, h, w)."""
    knowledge: Tensor
    """m^K1, the main branch's mask of the present classes, int64 (N, h, w)."""
    shared1: Tensor
    """DD-Net 1's features, (N, D, h, w)."""
    d_knowledge: Tensor
    """DD-Net 1's logits from m^K1, (N, h, w)."""
    sub_logits: Tensor
    """The sub branch's logits, (N, C, h, w)."""
    shared2: Tensor
    """DD-Net 2's features, (N, D, h, w)."""
    d_seed: Tensor
    """DD-Net 2's logits from m^D0, (N, h, w)."""
