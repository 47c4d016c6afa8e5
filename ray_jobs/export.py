"""Write a trained network into one file, for other programs or for `ssdd.load` elsewhere.

    python ray_jobs/export.py --model SOURCE --format onnx|torch|safetensors --output FILE

SOURCE is a workspace (its last network; --network names another), SSDD's published segmentation weights (.pth), or a
.safetensors file. onnx (.onnx) and torch (.pt2, of torch.export) hold the whole way from a photograph, uint8 RGB
(H, W, 3) of any size, to the probabilities of its classes, float32 (C, H, W), at one scale; safetensors
(.safetensors) holds the weights and the configuration. FILE appears if it computes what the network does. onnx needs
the extra: pip install 'ssdd[export]'.
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
    parser.add_argument("--network", metavar="NAME", help="of the workspace, as its job calls it (default: the last)")
    parser.add_argument("--preset", choices=list(PRESETS), default="paper", help="of the published weights")
    parser.add_argument(
        "--all-scales", action="store_true", help="all scales and mirror images of the configuration, not one"
    )
    chosen = parser.parse_args()
    if chosen.output.suffix != SUFFIXES[chosen.format]:
        parser.error(f"--output {chosen.output}: a file of --format {chosen.format} ends in {SUFFIXES[chosen.format]}")
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
