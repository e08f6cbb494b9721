"""Named recipes: published trainings as they stand in their papers.

A recipe's batch size is that of a space that names the recipe and no batch size of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.config import Train


@dataclass(frozen=True)
class NamedRecipe:
    """A published recipe. `note` says what of the paper is written otherwise here."""

    train: Train
    batch_size: int
    about: str
    paper: str
    note: str


# Section 3: SGD with Nesterov momentum 0.9, weight decay 0.0005, mini-batch 128, rate 0.1 times 0.2 at
# epochs 60, 120 and 160 of 200; flips and crops from images padded by 4 pixels.
WIDE_RESNET = Train(
    epochs=200,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="step(milestones=['30%', '60%', '80%'], factor=0.2)",
    augment="crop_flip",
)
RECIPES = {
    # Section 4.2: mini-batch 128, weight decay 0.0001, momentum 0.9, rate 0.1 divided by 10 at 32k and 48k
    # of 64k iterations, on 45k of the 50k images; 4 pixels padded, a random crop or its flip.
    "resnet_cifar": NamedRecipe(
        Train(
            epochs=182,
            optimizer="sgd",
            lr=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            augment="crop_flip",
        ),
        batch_size=128,
        about="the ResNets of CIFAR-10",
        paper="He et al., Deep Residual Learning, CVPR 2016, section 4.2",
        note=(
            "64k iterations at batches of 128 are 182 epochs of 45,000 images; the rate falls to a tenth at "
            "half of them (32k) and again at three quarters (48k). ResNet-110 there begins at 0.01 until it "
            "learns: warmup_epochs: 1 stands in for that."
        ),
    ),
    "wide_resnet_cifar": NamedRecipe(
        WIDE_RESNET,
        batch_size=128,
        about="the wide ResNets of CIFAR-10 and CIFAR-100",
        paper="Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016, section 3",
        note="The paper pads by reflection, here zeros come in from outside.",
    ),
    # The recipe of Wide-ResNet-28-10, with a cutout of 16x16 on CIFAR-10.
    "cutout_cifar10": NamedRecipe(
        replace(WIDE_RESNET, augment="crop_flip + cutout(size=16)"),
        batch_size=128,
        about="wide ResNets with cutout on CIFAR-10",
        paper="DeVries & Taylor, Improved Regularization of CNNs with Cutout, 2017",
        note="As wide_resnet_cifar, with squares of 16 pixels cut out.",
    ),
}
