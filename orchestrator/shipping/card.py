"""The model card, README.md: what a network was made from, what it reaches, what it costs, and its limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.data.loading import Dataset
from orchestrator.formatting import escape_controls
from orchestrator.model_io.export import ExportOptions, WrittenNetwork
from orchestrator.model_io.model_lookup import ModelSource
from orchestrator.shipping.evaluation import PICTURE, SAMPLE, FileAccuracy, Sample
from orchestrator.shipping.runners import RUNNERS, usage_lines
from pruning.user_code import own_code

Json = Any  # what json can write
MOST_CLASSES = 100  # rows of the table; FILE.json has all
NOT_STATED = "not stated; fill it in before you pass this on"
RECIPE = (
    "technique",
    "criterion",
    "granularity",
    "scope",
    "when",
    "schedule",
    "amount",
    "recover",
    "prepare",
    "distill",
    "control",
    "protect",
)
UNSET = ("", "none", "None")
LATENCY = "final/latency_ms_p50"
Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Card:
    """All that a model card says; `choice` is the sentence on how a run of a sweep was chosen."""

    model: ModelSource
    options: ExportOptions
    written: WrittenNetwork
    data: Dataset
    accuracy: FileAccuracy
    sample: Sample
    files: Sequence[str]
    choice: str

    @property
    def _about(self) -> Mapping[str, Json]:
        return self.written.metadata

    def text(self) -> str:
        """Return the card as Markdown."""
        sections = {
            "Run it": self._usage(),
            "Accuracy": self._accuracy(),
            "Size and speed": [_table(("", ""), self._costs())],
            "Data": [_table(("", ""), self._data())],
            "Recipe": [
                _table(("", ""), self._recipe()),
                f"Again, exactly: `orchestrate rerun {self.model.run_id}`",
            ],
            "Limits": [*_bullets(self._limits())],
            "Licence": [_table(("", ""), self._licence())],
            "Files": [_table(("file", ""), self._files())],
        }
        blocks = [f"# {_plain(self.model.name)}", self._summary()]
        for title, content in sections.items():
            blocks += [f"## {title}", *content]
        return "\n\n".join(blocks) + "\n"

    def _summary(self) -> str:
        network = self._about["network"]
        share = network["parameters"] / network["parameters_dense"]
        return (
            f"`{_code(network['model'])}`, an image classifier of {self._about['classes']} classes, with "
            f"{share:.1%} of the parameters of its dense network. {self.accuracy.text()}."
        )

    def _usage(self) -> Iterator[str]:
        runner, name = RUNNERS[self.options.format], self.written.path.name
        yield f"`pip install {' '.join(runner.packages)}`, then in this folder:"
        yield "```python\n" + "\n".join(usage_lines(name, self.options)) + "\n```"
        predicted = _code(self.data.class_names[self.sample.predicted])
        yield f"It prints `{predicted}`. `python check.py` checks the file."
        yield self._input_text()

    def _input_text(self) -> str:
        source, output = self._about["input"], self._about["output"]
        shape = " x ".join(map(str, source["shape"]))
        scale = self._about["scaling"]
        if self.written.interface.scaling is None:
            values = f"that are scaled already: (pixel / {scale['divide_by']} - mean) / deviation, with mean "
            values += f"{_numbers(scale['mean'])} and deviation {_numbers(scale['deviation'])} by channel"
        elif source["type"] == "uint8":
            values = f"from 0 to {scale['divide_by']}, the pixels as they are; scaling is inside"
        else:
            values = f"in [0, 1], pixels divided by {scale['divide_by']}; scaling is inside"
        dtype = f"`images`, {source['type']}, {shape} (channels first), {values}"
        return f"Input: {dtype}. Output: `{output['name']}`, {' x '.join(map(str, output['shape']))}."

    def _accuracy(self) -> Iterator[str]:
        interval = "the interval is Wilson's, over the test images"
        yield f"This file, fed as above: {self.accuracy.text()}; {interval}."
        recorded = self.model.accuracy
        if recorded is not None:
            yield f"The network as it was measured after training: {recorded:.2%}."
        yield self.choice or "The run was named, and not chosen among others by this command."
        rows = [(_plain(name), f"{value:.1%}", f"{count:,}") for name, value, count in self.accuracy.by_class]
        yield _table(("class", "accuracy", "test images"), rows[:MOST_CLASSES])
        if len(rows) > MOST_CLASSES:
            yield f"The first {MOST_CLASSES} of {len(rows):,} classes; {self.written.path.name}.json has all."

    def _costs(self) -> Iterator[tuple[str, str]]:
        network, metrics = self._about["network"], self.model.metrics
        dense = metrics.get("final/macs_dense")
        share = f" ({network['macs'] / dense:.1%} of the dense network's)" if dense else ""
        yield "MACs an image", f"{network['macs']:,}{share}"
        yield "parameters", f"{network['parameters']:,} of {network['parameters_dense']:,}"
        yield (
            "bytes",
            f"{self._about['bytes'] + sum(part['bytes'] for part in self._companions().values()):,}",
        )
        yield "numbers", self._numbers_text()
        if self.written.reduced is not None:
            for size, timing in self.written.reduced.timings.items():
                times = ", ".join(f"{name} {spread.p50:.3f} ms" for name, spread in timing.spreads.items())
                doubts = f"; not reliable: {', '.join(timing.doubts)}" if timing.doubts else ""
                yield f"latency, batch {size}, one thread", f"{times}{doubts}"
        elif LATENCY in metrics:
            conditions = json.loads(self.model.tags.get("latency", "{}")).get("1", {})
            doubts = ", ".join(conditions.get("doubts", ()))
            machine = conditions.get("machine", "a machine that was not recorded")
            note = f"; not reliable: {doubts}" if doubts else ""
            yield "latency of one image, in torch", f"{metrics[LATENCY]:.3f} ms on {_plain(machine)}{note}"
        else:
            is_onnx = self.options.format == "onnx"
            hint = f"; `orchestrate bench {self.written.path.name}` measures it" if is_onnx else ""
            yield "latency", f"not measured{hint}"

    def _companions(self) -> Mapping[str, Mapping[str, Json]]:
        companions: Mapping[str, Mapping[str, Json]] = self._about.get("companions", {})
        return companions

    def _numbers_text(self) -> str:
        reduced = self.written.reduced
        if reduced is None or not self.written.is_reduced:
            refused = f"; {reduced.form} was refused: {reduced.objection}" if reduced is not None else ""
            return f"float32{refused}"
        layers = (
            f"; in float32 for accuracy: {', '.join(reduced.float_layers)}" if reduced.float_layers else ""
        )
        return f"{reduced.form}, {reduced.method}{layers}"

    def _data(self) -> Iterator[tuple[str, str]]:
        data = self.data
        yield "data set", f"`{_code(self._about['dataset'])}`"
        train, validation, test = map(len, (data.train, data.validation, data.test))
        yield "images", f"{train:,} for training, {validation:,} for validation, {test:,} for the test"
        yield "size", " x ".join(map(str, data.input_shape)) + " (channels, height, width)"
        yield "digest", f"`{data.digest}`"

    def _recipe(self) -> Iterator[tuple[str, str]]:
        params = self.model.params
        names = ["model", "batch_size", "seed", *(name for name in params if name.startswith("train."))]
        for name in (*names, *(name for name in RECIPE if name in params)):
            if params.get(name, "") not in UNSET:
                yield name, f"`{_code(params[name])}`"
        yield "run", f"`{self.model.run_id}`"
        yield "manifest", f"`{self._about['manifest_sha256']}`"
        yield "written by", ", ".join(f"{name} {text}" for name, text in self._about["packages"].items())

    def _limits(self) -> Iterator[str]:
        size = " x ".join(map(str, self.data.input_shape))
        yield f"It knows the {len(self.data.class_names)} classes above, and gives one of them for any image."
        yield (
            f"It takes images of {size} made as those of its data set. Its accuracy on images of another "
            "camera, size or crop has not been measured."
        )
        worst = min(self.accuracy.by_class, key=lambda row: row[1])
        yield f"Its worst class on test images is {_plain(worst[0])}: {worst[1]:.1%} of {worst[2]:,}."
        yield "Its outputs are not calibrated: a probability is no measured frequency."
        if self.choice:
            yield "Of several runs the best on validation images was chosen: its accuracy there is too high."
        if reason := self.model.tags.get("stopped_because", ""):
            yield f"Its trial was stopped early: {_plain(reason)}."
        is_right = self.sample.predicted == self.sample.label
        sample = "a test image that it classifies correctly" if is_right else "one that it classifies wrongly"
        yield f"The sample is {sample}: it shows that the file runs, and nothing about accuracy."

    def _licence(self) -> Rows:
        return (("of this network", NOT_STATED), ("of its data", NOT_STATED), ("author", NOT_STATED))

    def _files(self) -> Iterator[tuple[str, str]]:
        name, label = self.written.path.name, self.data.class_names[self.sample.label]
        texts = {
            name: f"the network, {self.options.format}",
            f"{name}.json": "input, output, scaling, classes, digests, versions, the sample's output",
            SAMPLE: f"test image {self.sample.index}, of class {label}, as the file takes it",
            PICTURE: "the same image, to look at",
            "check.py": f"checks the file; needs {' and '.join(RUNNERS[self.options.format].packages)}",
        }
        for file in self.files:
            yield f"`{file}`", _plain(texts.get(file, "part of the network"))


def _table(header: Sequence[str], rows: Iterator[tuple[str, str]] | Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _bullets(texts: Iterator[str]) -> Iterator[str]:
    yield "\n".join(f"- {text}" for text in texts)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _plain(text: str) -> str:
    """Return a text of the user's without control characters and with no HTML."""
    return escape_controls(text).replace("<", "&lt;")


def _code(text: str) -> str:
    """Return a text for a span of code: names of one's own files without their pins."""
    return own_code.shown(escape_controls(text)).replace("`", "'")
