"""How a file of each format is run without this project: in the model card, and in check.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model_io.export import ExportOptions

Json = Any  # what json can write


@dataclass(frozen=True)
class Runner:
    """`packages` are all that is needed; `load` makes a `run` that takes an array and returns one.

    In both texts FILE stands for the file's path as a text, quoted.
    """

    packages: tuple[str, ...]
    imports: str
    load: str
    run: str


RUNNERS = {
    "onnx": Runner(
        ("onnxruntime", "numpy"),
        "import onnxruntime",
        'network = onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])',
        'network.run(None, {"images": images})[0]',
    ),
    "pt2": Runner(
        ("torch", "numpy"),
        "import torch",
        "network = torch.export.load(FILE).module()",
        "network(torch.from_numpy(images)).detach().numpy()",
    ),
    "safetensors": Runner(
        ("pruning-orchestrator",),
        "import torch; from pathlib import Path; from orchestrator.model_io.formats import load_safetensors",
        "network = load_safetensors(Path(FILE))",
        "network(torch.from_numpy(images)).detach().numpy()",
    ),
    "openvino": Runner(
        ("openvino", "numpy"),
        "import openvino",
        'network = openvino.Core().compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        "network(images)[0]",
    ),
    "tflite": Runner(
        ("ai-edge-litert", "numpy"),
        "from ai_edge_litert.interpreter import Interpreter",
        "network = Interpreter(FILE).get_signature_runner()",
        "next(iter(network(**{next(iter(network.get_input_details())): images}).values()))",
    ),
}


def usage_lines(file: str, options: ExportOptions) -> list[str]:
    """Return Python, five lines, that prints the class of the sample; it runs in the file's folder."""
    runner = RUNNERS[options.format]
    is_simple = runner.imports.startswith("import ") and ";" not in runner.imports
    imports = runner.imports.replace("import ", ", ", 1) if is_simple else f"; {runner.imports}"
    return [
        f"import json, numpy as np{imports}",
        runner.load.replace("FILE", repr(file)),
        f'names = json.load(open({f"{file}.json"!r}, encoding="utf-8"))["class_names"]',
        'images = np.load("sample.npy")',
        f"print(names[{runner.run}[0].argmax()])",
    ]


CHECK = '''\
"""Check FILE_NAME: its digest, and what it gives for sample.npy. It needs PACKAGES, and nothing else.

python check.py     # exit code 1 where something differs
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
IMPORTS

FOLDER = Path(__file__).resolve().parent
FILE = str(FOLDER / "FILE_NAME")


def run(images):
    LOAD
    return RUN


def main():
    about = json.loads(Path(FILE + ".json").read_text(encoding="utf-8"))
    digests = {part: entry["sha256"] for part, entry in about.get("companions", {}).items()}
    for name, digest in {"FILE_NAME": about["sha256"], **digests}.items():
        if hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"{name} is not the file that was exported: its SHA-256 differs")
    sample, names = about["sample"], about["class_names"]
    output = np.asarray(run(np.load(FOLDER / sample["file"])))[0]
    label = int(output.argmax())
    difference = float(np.abs(output - np.array(sample["output"])).max())
    print(f"class: {names[label]}")
    print(f"true class: {sample['class_name']} (test image {sample['test_image']})")
    print(f"largest output difference {difference:.3g}; {sample['allowed']:.3g} is allowed")
    if label != sample["predicted"] or not difference <= sample["allowed"]:
        sys.exit("it gives something else than where it was exported")
    print("ok")


if __name__ == "__main__":
    main()
'''


def check_script(file: str, options: ExportOptions) -> str:
    """Return check.py for a file of this name."""
    runner = RUNNERS[options.format]
    texts: Mapping[str, str] = {
        "FILE_NAME": file,
        "PACKAGES": " and ".join(runner.packages),
        "IMPORTS": runner.imports.replace("; ", "\n"),
        "LOAD": runner.load,
        "RUN": runner.run,
    }
    text = CHECK
    for name, value in texts.items():
        text = text.replace(name, value)
    return text
