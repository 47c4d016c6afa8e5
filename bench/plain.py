"""A dynamic step as in the published loop: one process, single precision, the CRF image by image, nothing in parallel.

Only the networks come from the package. Samples (with torchvision's transforms), CRF, SSDD modules and losses are
written here in a plain way, so that the package is compared with independent code.
"""

import io

import numpy as np
import pydensecrf.densecrf as densecrf
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2


class PlainSamples:
    """Makes training samples from rows of a table, with torchvision's transforms.

    Args:
        augment: an AugmentConfig, with the range of sides, the crop and the jitter.
        mask_size: side of the masks.
    """

    def __init__(self, augment, mask_size):
        self.low, self.high = augment.resize
        self.size = [mask_size, mask_size]
        self.flip = v2.RandomHorizontalFlip()
        self.crop = v2.RandomCrop(augment.crop)
        self.jitter = v2.ColorJitter(*augment.jitter)

    def __call__(self, row):
        """From a row's JPEG and PNG: image (3, crop, crop); the same without jitter, at the mask's size; the mask."""
        image = np.array(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        mask = np.array(Image.open(io.BytesIO(row["refined"])))
        sample = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))
        side = int(torch.randint(self.low, self.high + 1, ()))
        image, mask = self.flip(self.crop([v2.functional.resize(one, [side, side], antialias=True) for one in sample]))
        plain = v2.functional.resize(image, self.size, antialias=True)
        mask = v2.functional.resize(mask[None], self.size, interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]
        return self.jitter(image), plain, mask


class PlainLoop:
    """Runs steps of the dynamic stage on the CPU.

    Args:
        net: a DynamicNet, in training mode.
        optimizer: updates the parameters of `net`.
        dynamic: a DynamicConfig.
        samples: a PlainSamples.
    """

    def __init__(self, net, optimizer, dynamic, samples):
        self.net, self.optimizer, self.config, self.samples = net, optimizer, dynamic, samples

    def step(self, rows):
        images, plain, masks = (torch.stack(list(column)) for column in zip(*map(self.samples, rows), strict=True))
        seed = masks.long()
        present = [[0, *row["presence"]] for row in rows]
        net = self.net
        features = net.features(images)
        logits, hidden = net.main(features.high)
        sub_logits, sub_hidden = net.sub(features.high)
        knowledge = self.best(logits, present)
        advice = torch.stack([self.crf(*one) for one in zip(plain, logits.detach(), present, strict=True)])

        shared = net.difference_features(net.ddnet1, features, hidden)
        d_knowledge, d_advice = net.ddnet1(shared, knowledge), net.ddnet1(shared, advice)
        refined1, gone = self.module(d_knowledge, d_advice, knowledge, advice, present, self.config.bias1)
        shared = net.difference_features(net.ddnet2, features, sub_hidden)
        d_seed, d_refined = net.ddnet2(shared, seed), net.ddnet2(shared, refined1)
        refined2, _ = self.module(d_seed, d_refined, seed, refined1, present, self.config.bias2)
        halfway = self.best(sub_logits, present)

        differ = knowledge != advice
        alpha, kept = self.config.alpha, torch.tensor([not any(one) for one in gone])
        loss = F.cross_entropy(logits, refined2)
        loss = loss + alpha * F.cross_entropy(sub_logits, seed) + (1 - alpha) * F.cross_entropy(sub_logits, refined1)
        if kept.any():
            loss = loss + self.balanced(d_knowledge[kept], differ[kept]) + self.balanced(d_advice[kept], differ[kept])
        loss = loss + self.balanced(d_seed, seed != halfway) + self.balanced(d_refined, halfway != refined1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def best(self, logits, present):
        chosen = torch.full_like(logits, -torch.inf)
        for i, classes in enumerate(present):
            chosen[i, classes] = logits[i, classes].detach()
        return chosen.argmax(1)

    def crf(self, image, logits, classes):
        params, (height, width) = self.config.crf, image.shape[1:]
        model = densecrf.DenseCRF2D(width, height, len(classes))
        unary = -logits[classes].log_softmax(0).clamp(min=-11.5).reshape(len(classes), -1)
        model.setUnaryEnergy(np.ascontiguousarray(unary.numpy()))
        model.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_weight)
        colours = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        model.addPairwiseBilateral(
            sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=colours, compat=params.bilateral_weight
        )
        labels = np.array(model.inference(params.iterations)).argmax(0).reshape(height, width)
        return torch.tensor(classes)[torch.from_numpy(labels)]

    def module(self, d_knowledge, d_advice, knowledge, advice, present, bias):
        """m^D, and a list for each image: whether each foreground class has too few pixels in advice (`bad_ratio`)."""
        w = d_knowledge.detach().sigmoid() - d_advice.detach().sigmoid() + bias.bias
        w = w + bias.background * ((advice == 0).float() - (knowledge == 0).float())
        gone = []
        for i, classes in enumerate(present):
            gone.append([])
            for c in classes[1:]:
                before, after = int((knowledge[i] == c).sum()), int((advice[i] == c).sum())
                gone[i].append(after / max(before, 1) < self.config.bad_ratio)
                if after / max(before, 1) < bias.vanish_ratio:
                    w[i] += (advice[i] == c).float() - (knowledge[i] == c).float()
        return torch.where(w >= 0, advice, knowledge), gone

    def balanced(self, logits, differ):
        loss = F.binary_cross_entropy_with_logits(logits, differ.float(), reduction="none")
        sides = [loss[where].mean() for where in (differ, ~differ) if where.any()]
        return 0.5 * sum(sides)
