"""Trainings whose batches several processes share, over gloo: the results of one process."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

import models
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.errors import DivergedError
from orchestrator.training.device_group import ALONE, DeviceGroup, ProcessGroup
from orchestrator.training.loop import EpochRecord, TrainerState, Training, follow_training, run_training
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.training.synchronized_norm import synchronized_norms
from pruning.masking import prunable_layers

pytestmark = pytest.mark.slow  # two processes import torch
PROCESSES = 2
PLAIN = Train(epochs=2, optimizer="sgd", lr=0.05, clip_norm=1.0)
AUGMENTED = Train(epochs=2, lr=1e-3, augment="crop_flip", mixup=0.3, label_smoothing=0.1, ema=0.9)
NORMED = "cnn(widths=[4, 8, 8])"
Results = dict[str, Any]
Pairs = dict[str, tuple[Any, Any]]


def split(count: int) -> Split:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(10, (count,), generator=generator)
    return Split(torch.randn((count, 1, 8, 8), generator=generator), labels)


def training(model: str, recipe: Train, *, images: int, numerics: Numerics, **options: Any) -> Training:
    torch.manual_seed(3)
    net = models.build(model, input_shape=(1, 8, 8), num_classes=10)
    weights = {f"{name}.weight": layer.weight for name, layer in prunable_layers(net).items()}
    masks = {name: torch.rand(weight.shape) > 0.4 for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(1)
    phase = TrainingPhase(recipe.epochs)
    sets = (split(images), split(40))
    return Training(net, *sets, recipe, phase, 32, numerics, generator, masks, **options)


def trained(training: Training, group: DeviceGroup = ALONE) -> Results:
    records = run_training(training, group)
    return {"losses": losses(records), "weights": training.net.state_dict()}


def losses(records: list[EpochRecord]) -> list[list[float]]:
    return [[record.train_loss, record.val_loss, record.train_accuracy] for record in records]


def work(rank: int, folder: Path, jobs: dict[str, Callable[[DeviceGroup], Any]]) -> None:
    """Join the group, do the jobs, and write what each of them returned."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), PROCESSES)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    try:
        group = ProcessGroup(torch.device("cpu"))
        torch.save({name: job(group) for name, job in jobs.items()}, folder / f"{rank}.pt")
    except Exception:  # noqa: BLE001
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """What each of JOBS returned in the first process and in the other one."""
    folder = tmp_path_factory.mktemp("group")
    multiprocessing.spawn(work, (folder, JOBS), nprocs=PROCESSES)
    assert not [file.read_text() for file in folder.glob("*.txt")]
    first, other = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES))
    return {name: (first[name], other[name]) for name in JOBS}


class Job:
    """One training of a group: the first process trains, the others follow."""

    def __init__(self, model: str, recipe: Train, *, images: int = 107, **numerics: Any) -> None:
        self.model, self.recipe, self.images = model, recipe, images
        self.numerics = Numerics(devices=PROCESSES, **numerics)

    def __call__(self, group: DeviceGroup) -> Results:
        task = training(self.model, self.recipe, images=self.images, numerics=self.numerics)
        if group.rank == 0:
            return trained(task, group)
        follow_training(task, group, first_epoch=0)
        return {}


def assert_close(got: Results, expected: Results, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(
        torch.tensor(got["losses"]), torch.tensor(expected["losses"]), atol=atol, rtol=0
    )
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(got["weights"][name], tensor, atol=10 * atol, rtol=1e-3)


# The last batch has 11 images of 107, and of 97 only 1.
@pytest.mark.parametrize("images", [107, 97])
@pytest.mark.parametrize("micro_batch", [1000, 5])
def test_two_processes_train_as_one_does(both: Pairs, images: int, micro_batch: int) -> None:
    first, _ = both[f"mlp {images} {micro_batch}"]
    alone = training("mlp(widths=[16])", PLAIN, images=images, numerics=Numerics(micro_batch=micro_batch))
    assert_close(first, trained(alone))


def test_synchronized_norms_see_the_whole_batch(both: Pairs) -> None:
    first, _ = both["synchronized"]
    assert_close(first, trained(training(NORMED, PLAIN, images=107, numerics=Numerics())))


def test_norms_by_device_are_those_of_micro_batches(both: Pairs) -> None:
    first, _ = both["by device"]
    in_halves = trained(training(NORMED, PLAIN, images=96, numerics=Numerics(micro_batch=16)))
    whole = trained(training(NORMED, PLAIN, images=96, numerics=Numerics()))
    # Losses of validation read running statistics, which are those of the first process's images.
    train_losses = [result["losses"][0][0] for result in (first, in_halves, whole)]
    assert train_losses[0] == pytest.approx(train_losses[1], abs=1e-5)
    assert abs(train_losses[0] - train_losses[2]) > 1e-4


def test_a_run_is_repeated_bit_for_bit(both: Pairs) -> None:
    (first, _), (again, _) = both["augmented"], both["augmented again"]
    assert first["losses"] == again["losses"]
    assert all(torch.equal(tensor, again["weights"][name]) for name, tensor in first["weights"].items())


class Resumed(Job):
    """The same training, cut off after its first epoch and resumed from its state."""

    def __call__(self, group: DeviceGroup) -> Results:
        task = training(self.model, self.recipe, images=self.images, numerics=self.numerics)
        if group.rank:
            follow_training(task, group, first_epoch=0)
            task = training(self.model, self.recipe, images=self.images, numerics=self.numerics)
            follow_training(task, group, first_epoch=1)
            return {}
        states: list[TrainerState] = []
        options = {"images": self.images, "numerics": self.numerics}
        whole = training(
            self.model, self.recipe, **options, maybe_save=lambda capture: states.append(capture())
        )
        expected = trained(whole, group)
        torch.manual_seed(9)  # of no concern: the state has that of the global generator
        resumed = trained(training(self.model, self.recipe, **options, resume_from=states[0]), group)
        return {"whole": expected, "resumed": resumed}


def test_a_resumed_training_has_equal_bits(both: Pairs) -> None:
    first, _ = both["resumed"]
    assert first["whole"]["losses"] == first["resumed"]["losses"]
    pairs = zip(first["whole"]["weights"].values(), first["resumed"]["weights"].values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


class Branches(nn.Module):
    """A network of which every image goes through one branch alone, by the sign of its first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative, self.unused = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.positive(images) if images[0, 0] > 0 else self.negative(images)


def branch_gradients(group: DeviceGroup) -> Results:
    torch.manual_seed(0)
    net = Branches()
    group.start_step(net, 4)
    images = torch.full((2, 4), -1.0 if group.rank else 1.0)
    net(images).sum().backward()
    group.sum_gradients(net)
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_a_gradient_that_one_device_alone_has_is_not_lost(both: Pairs) -> None:
    first, _ = both["branches"]
    assert torch.equal(first["positive.weight"], torch.full((3, 4), 2.0))
    assert torch.equal(first["negative.weight"], torch.full((3, 4), -2.0))
    assert first["unused.weight"] is None


def norm_results(group: DeviceGroup) -> Results:
    """Return outputs, gradients and statistics of batch norms over the parts that the devices have."""
    generator = torch.Generator().manual_seed(5)
    results = {}
    for name, norm, shape in NORMS:
        images = 3 + 2 * torch.randn((7, 4, *shape), generator=generator)
        factors = torch.randn(images.shape, generator=generator)
        part = slice(0, 4) if group.rank == 0 else slice(4, 7)
        own = (images if group is ALONE else images[part]).requires_grad_()
        group.shares_batch = group is not ALONE
        with synchronized_norms(norm, group):
            output = norm(own)
        assert "forward" not in vars(norm)
        (output * (factors if group is ALONE else factors[part])).sum().backward()
        results[name] = [output.detach(), own.grad, norm.running_mean, norm.running_var]
    return results


NORMS = (
    ("2d", nn.BatchNorm2d(4), (3, 3)),
    ("1d", nn.BatchNorm1d(4, momentum=None), ()),
    ("3d", nn.BatchNorm3d(4, affine=False), (2, 3, 2)),
    ("untracked", nn.BatchNorm1d(4, track_running_stats=False), (5,)),
)


def test_synchronized_norms_are_torchs_over_all_images(both: Pairs) -> None:
    parts, expected = both["norms"], norm_results(ALONE)
    for name, (output, gradient, mean, variance) in expected.items():
        got = [torch.cat([part[name][index] for part in parts]) for index in (0, 1)]
        torch.testing.assert_close(got, [output, gradient], atol=1e-5, rtol=1e-4)
        for part in parts:
            torch.testing.assert_close(part[name][2:], [mean, variance], atol=1e-5, rtol=1e-5)


class Diverging(Job):
    def __call__(self, group: DeviceGroup) -> str:
        """Return how the training ends in this process; the group is no more afterwards."""
        task = training(self.model, self.recipe, images=self.images, numerics=self.numerics)
        try:
            run_training(task, group) if group.rank == 0 else follow_training(task, group, first_epoch=0)
        except (DivergedError, RuntimeError) as error:
            distributed.destroy_process_group()
            distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
            return type(error).__name__
        return ""


JOBS: dict[str, Callable[[DeviceGroup], Any]] = {
    **{
        f"mlp {images} {micro_batch}": Job("mlp(widths=[16])", PLAIN, images=images, micro_batch=micro_batch)
        for images in (107, 97)
        for micro_batch in (1000, 5)
    },
    "synchronized": Job(NORMED, PLAIN, sync_batch_norm=True),
    "by device": Job(NORMED, PLAIN, images=96),
    "augmented": Job(NORMED, AUGMENTED, sync_batch_norm=True),
    "augmented again": Job(NORMED, AUGMENTED, sync_batch_norm=True),
    "resumed": Resumed(NORMED, AUGMENTED),
    "branches": branch_gradients,
    "norms": norm_results,
    "diverging": Diverging("mlp(widths=[16])", Train(epochs=3, optimizer="sgd", lr=1e30)),
}


def test_the_others_end_when_the_first_has_left(both: Pairs) -> None:
    first, other = both["diverging"]
    assert (first, other) == ("DivergedError", "RuntimeError")


def test_a_training_runs_on_as_many_devices_as_it_says() -> None:
    with pytest.raises(RuntimeError, match="2 devices was run on 1"):
        run_training(training("slp", PLAIN, images=40, numerics=Numerics(devices=2)))
