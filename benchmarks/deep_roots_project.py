"""Filter groups for a trained network: fitted to data (init=project) against plain blocks.

    python benchmarks/deep_roots_project.py

Claim: what ``init=project`` makes of a trained NiN follows it more closely, and names more digits
right, than the diagonal blocks of its kernels do (``init=extract``), before any further training.
It is trained on the data of ``deep_roots_digits.py``, and 256 images of them calibrate. Errors
are those of the logits on the test set, relative (2-norm) to the trained network's.
"""

from __future__ import annotations

import argparse

import torch
from deep_roots_digits import accuracy, digits, train
from support.clock import Row, show, write

import nestify
from examples.models.nin import NiN
from nestify.support.closeness import relative_distance

INITS = ("extract", "project", "project,sizes=free")


def main() -> None:
    """Train one network, group it in every way, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=float, default=1 / 6, help="of NiN's layers")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--numbers", type=int, nargs="+", default=[2, 4, 8, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    torch.manual_seed(0)
    model = NiN(width=options.width)
    train(model, data, options.epochs, seed=0)
    calibration = list(data.train[0][:256].split(64))
    images = data.test[0]
    with torch.no_grad():
        logits = model(images)
    rows: list[Row] = [{"network": "original", "accuracy": accuracy(model, data)}]
    for number in options.numbers:
        for init in INITS:
            recipe = f"root-{number}{{init={init}}}"
            nested = nestify.transform(model, recipe, (images[:2],), calibration=calibration)
            grouped = nested.eval().extract({})
            tuned = nested.extract({}, calibrate=calibration)
            cost = nested.estimate([nested.space.largest()], convention="caffe").row(0)
            with torch.no_grad():
                error = relative_distance(logits, grouped(images))
            rows.append(
                {
                    "network": recipe,
                    "MACs": cost.macs,
                    "params": cost.params,
                    "error": error,
                    "accuracy": accuracy(grouped, data),
                    "accuracy, BatchNorm re-estimated": accuracy(tuned, data),
                }
            )
            print(rows[-1], flush=True)
    show(f"NiN at width {options.width:.3g}, trained, then grouped", rows)
    write("deep_roots_project", {"rows": rows})


if __name__ == "__main__":
    main()
