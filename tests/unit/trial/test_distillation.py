"""Learning from the dense network: the loss by hand, its ends, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from trained import Trained, digits, trained

from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.training.hooks import TrainingHooks
from orchestrator.training.losses import cross_entropy
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.trial import stages
from orchestrator.trial.context import NetworkState, make_context
from orchestrator.trial.distillation import distillations, in_precision
from orchestrator.trial.run import run_trial

DENSE = DenseConfig("mlp(widths=[32, 16])", "digits", 64, 0, Train(epochs=2), Numerics(micro_batch=4096))
PRUNE = Prune("magnitude", "weight", "layer", "one_shot", 0.5)

IMAGES, LABELS = (
    torch.randn(6, 5, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 2, 1, 0]),
)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))


def by_hand(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, weight: float) -> float:
    """Image by image, with softmaxes and logarithms written out in float64."""
    total = 0.0
    for s, t, label in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        hard = -float(torch.log(s.exp() / s.exp().sum())[label])
        p, q = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (t, s))
        total += (1 - weight) * hard + weight * temperature**2 * float((p * (p / q).log()).sum())
    return total


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_soft_labels_by_hand(temperature: float, weight: float) -> None:
    teacher, student = network(1), network(2).eval()(IMAGES).detach()
    loss = distillations.get(f"soft_labels(temperature={temperature}, weight={weight})")(teacher)
    expected = by_hand(
        student, network(1).eval()(IMAGES).detach(), LABELS, temperature=temperature, weight=weight
    )
    assert float(loss(student, IMAGES, LABELS)) == pytest.approx(expected, rel=1e-3)


def test_a_teacher_is_in_the_precision_of_a_training_on_a_gpu() -> None:
    teacher = network(1).eval()
    assert in_precision(teacher, Numerics("cpu", "bf16")) is teacher
    assert torch.equal(in_precision(teacher, Numerics("cuda", "fp32"))(IMAGES), teacher(IMAGES))
    half = in_precision(teacher, Numerics("cuda", "bf16"))
    assert half(IMAGES).dtype == torch.bfloat16
    torch.testing.assert_close(half(IMAGES).float(), teacher(IMAGES), rtol=0.05, atol=0.05)
    half.train()
    distillations.get("soft_labels")(half)
    assert not any(module.training for module in half.modules())


def test_without_weight_only_the_labels_count() -> None:
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    loss = distillations.get("soft_labels(weight=0.0)")(network(1))
    assert torch.equal(loss(student, IMAGES, LABELS), cross_entropy(student, IMAGES, LABELS))
    assert distillations.get("none")(network(1)) is cross_entropy


def test_a_student_that_gives_what_its_teacher_gives_has_nothing_to_learn() -> None:
    teacher = network(1)
    loss = distillations.get("soft_labels(weight=1.0)")(teacher)
    student = teacher(IMAGES).detach().requires_grad_()  # in eval mode now: no dropout, running statistics
    value = loss(student, IMAGES, LABELS)
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert float(gradient.abs().max()) < 1e-6


def test_the_teacher_is_not_trained_and_does_not_change() -> None:
    teacher = network(1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = torch.zeros(6, 3, requires_grad=True)
    distillations.get("soft_labels(weight=1.0)")(teacher)(student, IMAGES, LABELS).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_gradient_stays_of_one_size_whatever_the_temperature() -> None:
    # Hinton et al.: for high temperatures and logits of mean zero the gradient tends to (s - t) / classes.
    teacher = nn.Linear(5, 3, bias=False)
    wanted = teacher(IMAGES).detach()
    wanted = wanted - wanted.mean(1, keepdim=True)
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    student = (student - student.mean(1, keepdim=True)).requires_grad_()
    loss = distillations.get("soft_labels(temperature=1000.0, weight=1.0)")(teacher)
    (gradient,) = torch.autograd.grad(loss(student, IMAGES, LABELS), student)
    torch.testing.assert_close(gradient, (student.detach() - wanted) / 3, rtol=0.02, atol=0.005)


@pytest.mark.parametrize("options", ["temperature=0.0", "temperature=-1.0", "weight=-0.1", "weight=1.1"])
def test_bad_options(options: str) -> None:
    with pytest.raises(ValueError, match="must be in"):
        distillations.get(f"soft_labels({options})")
    with pytest.raises(ValueError, match="did you mean soft_labels"):
        distillations.get("soft_label")


# ---- in a walk


def dense() -> NetworkState:
    return trained(DENSE).last.state


def walk(distill: str, prepare: str = "none", recover: str = "finetune(epochs=1)") -> NetworkState:
    config = TrialConfig(DENSE, PRUNE, recover, "weight", prepare=prepare, distill=distill)
    return run_trial(config, digits(), store=Trained()).last.state


def test_the_teachers_forward_passes_are_charged() -> None:
    macs, first = 64 * 32 + 32 * 16 + 16 * 10, 64 * 32
    plain, taught = (walk(distill).train_flops - dense().train_flops for distill in ("none", "soft_labels"))
    # 2 FLOPs per MAC: three passes but for the images' gradient, and one more of the teacher.
    assert plain == 2 * 1257 * (3 * macs - first)
    assert taught == plain + 2 * 1257 * macs


def test_the_charge_is_what_torch_counts() -> None:
    context = make_context(DENSE, digits())
    loss = distillations.get("soft_labels")(context.build_module(dense()))
    net, images, labels = context.build(), digits().train.images[:64], digits().train.labels[:64]
    with FlopCounterMode(display=False) as counter:
        loss(net(images), images, labels).backward()
    taught = replace(context, loss=loss, has_teacher=True)
    state = stages.train_more(taught, stages.initial(context), TrainingPhase(1), stage="x", round=0)
    assert state.train_flops * 64 == counter.get_total_flops() * 1257


def test_what_is_learnt_differs_and_comes_from_the_dense_network() -> None:
    plain, unweighted, taught = (
        walk(distill) for distill in ("none", "soft_labels(weight=0.0)", "soft_labels")
    )
    name = "output.weight"
    assert torch.equal(plain.weights[name], unweighted.weights[name])
    assert not torch.equal(plain.weights[name], taught.weights[name])


def test_a_preparation_learns_from_the_labels_and_is_charged_for_them_alone() -> None:
    lasso = "group_lasso(epochs=1)"
    plain, taught = (walk(distill, lasso, "none") for distill in ("none", "soft_labels"))
    assert all(torch.equal(plain.weights[name], weight) for name, weight in taught.weights.items())
    assert taught.train_flops == plain.train_flops


def test_the_loss_is_given_the_very_images_that_the_network_saw() -> None:
    context = make_context(replace(DENSE, train=Train(epochs=1, augment="flip")), digits())
    shown: list[Tensor] = []
    count = 0

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal count
        assert images is shown[-1]
        count += len(images)
        return cross_entropy(logits, images, labels)

    def hooks(net: nn.Module) -> TrainingHooks:
        net.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
        return TrainingHooks(loss=loss)

    stages.train_more(
        context, stages.initial(context), TrainingPhase(1), stage="x", round=0, make_hooks=hooks
    )
    assert count == 1257
