"""SSDD: Self-Supervised Difference Detection for weakly-supervised semantic segmentation, on Ray."""
