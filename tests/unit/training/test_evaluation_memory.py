"""Memory that runs out: while evaluating, measuring and loading, and a trial's share of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config import DenseConfig, Numerics, Train
from orchestrator.data import loading
from orchestrator.data.loading import Split
from orchestrator.data.scaled_images import ScaledImages
from orchestrator.errors import CollapsedError
from orchestrator.system.memory import ALLOCATION_ERRORS, CONTEXT_BYTES, is_out_of_memory, limit_gpu_memory
from orchestrator.training.evaluation import evaluate, evaluate_in_memory
from orchestrator.trial import stages
from orchestrator.trial.context import make_context
from orchestrator.trial.measurement import measure
from tests.cuda_double import cuda_double

SPLIT = Split(torch.randn((100, 1, 4, 4), generator=torch.Generator().manual_seed(0)), torch.arange(100) % 10)


class Narrow(nn.Module):
    """A network for which memory runs out with more than `most` images."""

    def __init__(self, most: int, text: str = "CUDA out of memory") -> None:
        super().__init__()
        self.layer, self.most, self.text = nn.Linear(16, 10), most, text
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.most:
            raise RuntimeError(self.text)
        logits: Tensor = self.layer(images.flatten(1))
        return logits


@pytest.mark.parametrize("text", ALLOCATION_ERRORS)
def test_evaluation_goes_on_with_half_the_images(text: str) -> None:
    net = Narrow(30, f"a library: {text} when calling something")
    evaluation, at_once = evaluate_in_memory(net, SPLIT, numerics=Numerics(micro_batch=4096))
    assert at_once == 25  # of 4096, 50 and 25
    assert net.seen == [100, 50, 25, 25, 25, 25]
    net.most = 100
    assert evaluation.accuracy == evaluate(net, SPLIT, numerics=Numerics()).accuracy


def test_memory_that_does_not_hold_one_image() -> None:
    with pytest.raises(CollapsedError, match="one image at a time: CUDA out of memory"):
        evaluate_in_memory(Narrow(0), SPLIT, numerics=Numerics())


def test_other_errors_pass() -> None:
    net = Narrow(30, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        evaluate_in_memory(net, SPLIT, numerics=Numerics())


def test_errors_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"))
    chained = ValueError("criterion 'snip' cannot score Linear")
    chained.__cause__ = RuntimeError("CUDA error: out of memory")
    assert is_out_of_memory(chained)


def test_a_measurement_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = DenseConfig("mlp(widths=[8])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
    on = make_context(dense, loading.load_dataset("digits", samples_per_class=10))
    state = stages.initial(on)
    whole = measure(on, state)
    build = type(on).build_module

    def narrow(context: object, state: object) -> nn.Module:
        net = build(context, state)  # type: ignore[arg-type]  # bound by hand

        def check(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")

        net.register_forward_pre_hook(check)
        return net

    monkeypatch.setattr(type(on), "build_module", narrow)
    measured = measure(on, state)
    assert (whole.state.micro_batch, measured.state.micro_batch) == (4096, 90)  # 360 test images in quarters
    assert measured.measurement.accuracy == whole.measurement.accuracy
    assert torch.equal(measured.confusion, whole.confusion)


def test_images_that_a_gpu_does_not_hold_stay_with_the_host() -> None:
    expected = loading.load_dataset("digits", samples_per_class=20)
    index = torch.tensor([3, 1, 4])
    with cuda_double() as double:
        double.largest = 40_000  # more than the labels, and less than 180 images of 64 floats
        data = loading.load_dataset("digits", samples_per_class=20, device="cuda")
        images = data.train.images
        assert isinstance(images, ScaledImages)
        assert not double.has(images.pixels)
        batch = images[index]
        assert double.has(batch)
        assert torch.equal(batch.cpu(), expected.train.images[index])
    assert data.digest == expected.digest


@pytest.mark.parametrize(
    ("share", "total", "fraction"),
    [(0.5, 80 << 30, 0.5 - CONTEXT_BYTES / (80 << 30)), (0.1, 4 << 30, 0.05), (1.0, 80 << 30, None)],
)
def test_a_trial_has_its_share_of_the_memory(
    share: float, total: int, fraction: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_fractions: list[float] = []
    properties: Callable[[int], SimpleNamespace] = lambda number: SimpleNamespace(total_memory=total)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fractions.append)
    limit_gpu_memory(share)
    assert set_fractions == ([] if fraction is None else [pytest.approx(fraction)])
