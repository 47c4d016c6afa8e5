"""Write a trained network into one file, for other programs or for `ssdd.load` on another machine.

    python ray_jobs/export.py --model SOURCE --format onnx|torch|safetensors --output FILE

SOURCE is a workspace, SSDD's published segmentation weights (.pth), or a .safetensors file. An onnx file (.onnx) or a
torch file (.pt2, torch.export) takes a photograph of any size, uint8 RGB (H, W, 3), and gives the probability of each
class at each pixel, float32 (C, H, W), computed at one scale. A safetensors file (.safetensors) has the weights and the
configuration. FILE is written only if its results agree with the network's. onnx needs pip install 'ssdd[export]'.
"""

import argparse
import sys

import ssdd
from ssdd import export
from ssdd.config import ConfigError
from ssdd.nets.exported import SUFFIXES
from ssdd.nets.weight_files import WeightsError
from ssdd.presets import PRESETS
from ssdd.storage.paths import RemoteError, path_flag


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=path_flag, required=True, metavar="SOURCE")
    parser.add_argument("--format", choices=list(SUFFIXES), required=True)
    parser.add_argument("--output", type=path_flag, required=True, metavar="FILE")
    parser.add_argument(
        "--network", metavar="NAME", help="which network of the workspace (default: dynamic, SSDD's network)"
    )
    parser.add_argument(
        "--preset",
        choices=list(PRESETS),
        default="paper",
        help="the preset that describes the network of published weights",
    )
    parser.add_argument(
        "--all-scales",
        action="store_true",
        help="compute all scales and mirror images of the configuration, not only one scale",
    )
    chosen = parser.parse_args()
    if chosen.output.suffix != SUFFIXES[chosen.format]:
        parser.error(f"--output {chosen.output}: use the suffix {SUFFIXES[chosen.format]} for --format {chosen.format}")
    segmenter = ssdd.load(chosen.model, chosen.network, chosen.preset)
    check = export.save(segmenter, chosen.output, chosen.all_scales)
    print(
        f"{chosen.output}: {len(segmenter.classes)} classes; on {len(export.SIZES)} photographs {check.equal:.3%} of "
        f"pixels have the network's class, probabilities differ by at most {check.difference:.2g}"
    )


if __name__ == "__main__":
    try:
        main()
    except (ConfigError, WeightsError, export.ExportError, OSError, RemoteError) as error:
        sys.exit(f"export: {error}")
