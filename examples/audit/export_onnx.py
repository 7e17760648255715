"""Write the bird or the face classifier as an ONNX file, which is then all that is kept of it.

The birds' file takes any number of images of 96 x 96 pixels at once; the faces' takes one image of 64 x 64 at a time,
as files made for a device often do. Both want ImageNet's mean and deviation taken off:

    pip install onnx onnxruntime
    python export_onnx.py birds --weights birds/best.pth --out onnx/birds.onnx
    python export_onnx.py faces --weights faces/faces.safetensors --out onnx/faces.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn


def birds(weights: Path) -> tuple[nn.Module, int]:
    """Return the trained bird classifier and the side of its images."""
    from birds_model import SIZE, build

    model = build()
    state = torch.load(weights, weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model, SIZE


def faces(weights: Path) -> tuple[nn.Module, int]:
    """Return the trained face classifier and the side of its images."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("resnet18", num_classes=2)
    model.load_state_dict(load_file(weights))
    return model, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["birds", "faces"])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, side = (birds if args.which == "birds" else faces)(args.weights)
    model.eval()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    axes = {"images": {0: "n"}, "scores": {0: "n"}} if args.which == "birds" else None
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, side, side),),
        str(args.out),
        input_names=["images"],
        output_names=["scores"],
        dynamic_axes=axes,
        dynamo=False,
    )
    x = torch.randn(1, 3, side, side)
    (scores,) = onnxruntime.InferenceSession(str(args.out)).run(None, {"images": x.numpy()})
    difference = float(np.abs(scores - model(x).detach().numpy()).max())
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, largest difference to the network {difference:.1e}")


if __name__ == "__main__":
    main()
