"""The dense CRF: the mapping from knowledge to advice (sec. 4.1; Kraehenbuehl and Koltun, NIPS 2011).

This module imports neither torch nor Ray, so that a CRF process starts quickly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_WIDTH = 0.01
"""The smallest width that a kernel may have. pydensecrf aborts the process if an image's side (or 255, for a width in
grey levels) is more than 25 million times a width (measured at sides of 16 to 256 pixels). With this minimum, that
happens only at sides above 250,000 pixels."""


@dataclass(frozen=True, kw_only=True)
class CRFParams:
    """Weights and widths of the two kernels (sec. 5.2, docs/method.md) and the number of mean-field steps."""

    gaussian_weight: float = 3
    """Weight w_g of the Gaussian smoothness kernel."""
    gaussian_sxy: float = 3
    """Width theta_gamma of the Gaussian kernel, in pixels."""
    bilateral_weight: float = 10
    """Weight w_rgb of the bilateral appearance kernel."""
    bilateral_sxy: float = 80
    """Width theta_alpha of the bilateral kernel, in pixels."""
    bilateral_srgb: float = 13
    """Width theta_beta of the bilateral kernel, in grey levels."""
    iterations: int = 10
    """Mean-field iterations: 10 offline and at test time, 3 inside training."""


def dense_crf(image: np.ndarray, probs: np.ndarray, params: CRFParams) -> np.ndarray:
    """Mean-field inference of a fully connected CRF whose unary term is -log(probs).

    Args:
        image: uint8 (H, W, 3), RGB.
        probs: float32 (C, H, W), class scores >= 0; they need not sum to one, since a factor per pixel cancels.
            C is the number of *presence labels* (background and the image's classes), not of all classes.
        params: kernel weights, widths and iterations.

    Returns:
        float32 (C, H, W), the marginals, which sum to one at each pixel.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"dense_crf: image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if probs.ndim != 3 or probs.shape[1:] != image.shape[:2]:
        raise ValueError(f"dense_crf: probs must be (C, {image.shape[0]}, {image.shape[1]}), got {probs.shape}")
    classes, height, width = probs.shape
    if classes == 1:  # one label only: nothing to decide
        return np.ones((1, height, width), np.float32)

    import pydensecrf.densecrf as densecrf

    model = densecrf.DenseCRF2D(width, height, classes)
    # The floor keeps -log finite; pydensecrf needs writable, contiguous float32.
    unary = -np.log(np.maximum(probs, 1e-5, dtype=np.float32)).reshape(classes, -1)
    model.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    model.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_weight)
    model.addPairwiseBilateral(
        sxy=params.bilateral_sxy,
        srgb=params.bilateral_srgb,
        rgbim=np.array(image, order="C"),
        compat=params.bilateral_weight,
    )
    marginals = model.inference(params.iterations)
    return np.array(marginals, dtype=np.float32).reshape(classes, height, width)


def segment_image(
    image: np.ndarray, probs: np.ndarray, crfs: dict[str, CRFParams], min_probability: float, sharpen: float
) -> dict[str, np.ndarray]:
    """Test-time masks of one image: the best class at each pixel, and the best class after each CRF.

    Args:
        image: uint8 (H, W, 3).
        probs: float32 (C, H, W), of all classes.
        crfs: the CRFs' parameters by name.
        min_probability: the CRFs leave out classes whose probability is below this at all pixels.
        sharpen: the CRFs get softmax(sharpen * probs) over the classes; 0: they get `probs`.

    Returns:
        masks, uint8 (H, W), by the names of the CRFs; the mask without a CRF has the name "".
    """
    masks = {"": probs.argmax(0).astype(np.uint8)}
    peak = probs.max((1, 2))
    labels = np.flatnonzero(peak >= min(min_probability, peak.max())).astype(np.uint8)
    # A constant factor at a pixel cancels in the CRF, so the softmax needs no denominator.
    unary = np.exp(sharpen * (probs - probs.max(0))) if sharpen else probs
    return masks | {name: labels[dense_crf(image, unary[labels], crf).argmax(0)] for name, crf in crfs.items()}


def without_absent(probs: np.ndarray, absent: Sequence[int]) -> np.ndarray:
    """Set the probabilities of absent classes to 0, in place, and rescale the others to sum to one.

    Args:
        probs: float32 (C, H, W).
        absent: foreground classes that the image does not have. Pixels at which no other class has a probability
            become background.
    """
    if absent:
        probs[list(absent)] = 0
        probs[0, probs.sum(0) == 0] = 1
        probs /= probs.sum(0)
    return probs


def segment_present(
    image: np.ndarray, probs: np.ndarray, crf: CRFParams | None, min_probability: float, sharpen: float
) -> np.ndarray:
    """`segment_image` with only the classes that have a probability above 0 at some pixel.

    Args:
        image: uint8 (H, W, 3).
        probs: float32 (C, H, W), of all classes; 0 everywhere for those that the image does not have.
        crf: the CRF's parameters; None: no CRF, but the best class at each pixel.
        min_probability, sharpen: see `segment_image`.

    Returns:
        uint8 (H, W)
    """
    present = np.flatnonzero(probs.max((1, 2)) > 0).astype(np.uint8)
    crfs = {} if crf is None else {"crf": crf}
    masks = segment_image(image, probs[present], crfs, min_probability, sharpen)
    return present[masks["" if crf is None else "crf"]]


def crf_masks(
    images: Iterable[np.ndarray], probs: Iterable[np.ndarray], labels: Iterable[np.ndarray], params: CRFParams
) -> np.ndarray:
    """CRF masks of a few images.

    Args:
        images: each uint8 (H, W, 3).
        probs: for each image, probabilities of its presence labels, (n, H, W).
        labels: for each image, the class index of each presence label, in the order of `probs`, uint8 (n,).
        params: the CRF's parameters.

    Returns:
        the class index of the best label at each pixel, uint8 (N, H, W).
    """
    masks = []
    for image, prob, label in zip(images, probs, labels, strict=True):
        best = dense_crf(image, prob.astype(np.float32), params).argmax(0)
        masks.append(label[best])
    return np.stack(masks)
