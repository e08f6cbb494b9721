"""How many networks can be cut, and how exactly: every classifier of torchvision, or of timm.

    python benchmarks/prunability.py [--timm] [NAME ...]

Of each network a fraction of the channels is pruned and cut out; the cut network is compared with the masked
one on random images in float64, and rebuilt from its widths. Beside it, in the same run, Torch-Pruning's own
pruner at the same fraction, compared with *its* masked network: the rows that it removes, and the entries of
their norms, set to zero. Every network has a process of its own, one thread, and images of 64 x 64 where it
takes them. Results go to results/prunability.json, a network at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import models
import pruning
from models.torchvision_compat import models as torchvision_models
from orchestrator.trial.macs import profile
from pruning.channels import find_channels
from pruning.cutting.layer_widths import layer_widths, resize

AMOUNTS = (0.25, 0.5, 0.75)
SIDES = (64, 224, 256, 299)  # of the images; the first that the network takes
MOST_PARAMETERS = 150_000_000
LIMIT = 600  # seconds of processor time for one network, by either side
MEMORY = 18_000_000_000  # bytes of address space
RESULTS = Path(__file__).parent / "results" / "prunability.json"
# One small member of each of timm's families.
TIMM = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convformer_s18 convit_tiny
convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cspresnet50 davit_tiny
deit_tiny_patch16_224 densenet121 dla34 dm_nfnet_f0 dpn48b eca_nfnet_l0 edgenext_xx_small
efficientformer_l1 efficientnet_b0 efficientvit_b0 eva02_tiny_patch14_224 fastvit_t8 gcvit_xxtiny
ghostnet_100 hardcorenas_a hgnet_tiny hrnet_w18_small inception_next_tiny levit_128s
maxvit_rmlp_pico_rw_256 mixer_s32_224 mobilenetv3_small_100 mobileone_s0 mobilevit_xxs mvitv2_tiny
nest_tiny pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repvgg_a0 res2net50_14w_8s resnest14d
resnet18 rexnet_100 selecsls42 seresnet18 skresnet18 swin_tiny_patch4_window7_224 tiny_vit_5m_224
tnt_s_patch16_224 twins_pcpvt_small vgg11_bn visformer_tiny vit_tiny_patch16_224 volo_d1_224
vovnet39a xception41 xcit_nano_12_p16_224
"""


def build(name: str, side: int) -> nn.Module:
    """Return the network for RGB images of `side` pixels and ten classes, in eval mode."""
    torch.manual_seed(0)
    net = models.build(name, input_shape=(3, side, side), num_classes=10).eval()
    return net if next(net.parameters()).is_meta else awaken(net)


@torch.no_grad()
def awaken(net: nn.Module) -> nn.Module:
    """Draw what is constant in a new network: shifts, scales and statistics of norms, layer scales.

    With a layer scale of 1e-6, or shifts of zero, a wrongly cut network would answer almost as the masked.
    """
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.uniform_(-0.2, 0.2) if tensor.flatten()[0] == 0 else tensor.uniform_(0.8, 1.2)
    return net


def masked(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    copy = deepcopy(net)
    pruning.apply_masks(copy, masks)
    return copy


@torch.no_grad()
def difference(net: nn.Module, small: nn.Module, side: int) -> float:
    """Return the largest difference of the logits over the largest logit, in float64."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected, logits = (each.double().eval()(images.clone()) for each in (deepcopy(net), deepcopy(small)))
    return float((logits - expected).abs().max() / expected.abs().max())


def cost(net: nn.Module, side: int) -> tuple[int, int]:
    """Return parameters and MACs of one image."""
    return sum(p.numel() for p in net.parameters()), profile(net, (3, side, side)).total_macs


def cut_ours(name: str, side: int) -> dict[str, Any]:
    """Return what this project makes of a network: one record an amount."""
    net = build(name, side)
    images = torch.zeros(2, 3, side, side)
    started = process_time()
    channels = find_channels(net, images)
    record: dict[str, Any] = {"trace_seconds": process_time() - started, "side": side}
    record["parameters"], record["macs"] = cost(net, side)
    record["groups"], record["heads"] = len(channels.groups), len(channels.heads)
    record["whole"] = list(channels.left_whole)
    for amount in AMOUNTS:
        masks = pruning.prune(
            net, amount=amount, criterion="l2", granularity="channel", scope="layer", groups=channels.groups
        )
        started = process_time()
        small = pruning.shrink(net, masks, images, groups=channels.groups)
        seconds = process_time() - started
        rebuilt = resize(build(name, side), layer_widths(small))
        rebuilt.load_state_dict(small.state_dict())
        parameters, macs = cost(small, side)
        record[f"{amount}"] = {
            "parameters": parameters,
            "macs": macs,
            "difference": difference(masked(net, masks), rebuilt, side),
            "cut_seconds": seconds,
        }
    record["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return record


def cut_theirs(name: str, side: int) -> dict[str, Any]:
    """Return what Torch-Pruning's pruner makes of it at half of the channels."""
    import torch_pruning

    net = build(name, side)
    images = torch.zeros(2, 3, side, side)
    last = [
        layer
        for layer in net.modules()
        if 10 in (vars(layer).get("out_features"), vars(layer).get("out_channels"))
    ]
    started = process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        net, images, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=last,
    )  # fmt: skip
    reference = deepcopy(net)
    names = {id(module): module_name for module_name, module in net.named_modules()}
    rows_left: dict[str, list[int]] = {}  # what is removed is counted among the rows that are left
    for group in pruner.step(interactive=True):
        removed: dict[str, set[int]] = {}
        for dependency, positions in group:
            name = names.get(id(dependency.target.module), "")
            if name and makes_rows(reference.get_submodule(name), dependency):
                removed.setdefault(name, set()).update(positions)
        for name, positions in removed.items():
            module = reference.get_submodule(name)
            rows = rows_left.get(name) or list(range(len(next(module.parameters(recurse=False), []))))
            silence(module, [rows[position] for position in positions])
            rows_left[name] = [row for position, row in enumerate(rows) if position not in positions]
        group.prune()
    parameters, macs = cost(net, side)
    return {
        "parameters": parameters,
        "macs": macs,
        "difference": difference(reference, net, side),
        "seconds": process_time() - started,
    }


def makes_rows(module: nn.Module, dependency: Any) -> bool:
    """Whether a layer loses outputs by this, or a norm entries."""
    is_output = "out_channels" in getattr(dependency.handler, "__name__", "")
    return is_output or isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))


@torch.no_grad()
def silence(module: nn.Module, rows: list[int]) -> None:
    """Set rows of a layer, or entries of a norm, to zero."""
    for parameter in module.parameters(recurse=False):
        if parameter.shape[0] > max(rows):
            parameter[rows] = 0


def run_one(name: str, label: str) -> dict[str, Any]:
    """Return the record of one network, by us or by the peer; an error is a record, too."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run, result = RUNS[label], {}
    for side in SIDES:
        try:
            build(name, side)(torch.zeros(2, 3, side, side))
        except Exception as error:  # noqa: BLE001  # whatever a network says to images that do not fit
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        try:
            return run(name, side)
        except Exception as error:  # noqa: BLE001  # the record says which network fails how
            return {"error": f"{type(error).__name__}: {error}"[:300]}
    return result


RUNS = {"ours": cut_ours, "torch_pruning": cut_theirs}


def run_aside(name: str, label: str) -> dict[str, Any]:
    """Return the record that a process of its own makes, within LIMIT seconds and MEMORY bytes.

    Seconds of the clock end a process that waits for ever, three times as many: others may run beside it.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))

    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", label, name],
            capture_output=True,
            text=True,
            timeout=3 * LIMIT,
            check=True,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"Timeout: over {LIMIT} seconds"}
    except subprocess.CalledProcessError as error:
        if error.returncode == -signal.SIGXCPU:
            return {"error": f"Timeout: over {LIMIT} seconds"}
        return {"error": f"Killed: {error.stderr.strip().splitlines()[-1:] or error.returncode}"}
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def names_to_run(*, timm: bool) -> list[str]:
    if timm:
        return [f"timm.{name}" for name in TIMM.split()]
    return [f"torchvision.{name}" for name in torchvision_models.list_models(module=torchvision_models)]


def size(name: str) -> int:
    """Return the number of parameters; 0 where it cannot be built without memory."""
    with torch.device("meta"):
        for side in SIDES[::-1]:
            with suppress(Exception):  # another size, then
                return sum(p.numel() for p in build(name, side).parameters())
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.names[0], options.one)))
        return
    sizes = {name: size(name) for name in options.names or names_to_run(timm=options.timm)}
    for name in sorted(
        (name for name in sizes if sizes[name] <= MOST_PARAMETERS), key=lambda name: sizes[name]
    ):
        result = {"name": name} | {label: run_aside(name, label) for label in RUNS}
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another run may have added
        results[name] = result
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(line(result), flush=True)


def line(result: dict[str, Any]) -> str:
    """Return one row of the table."""
    ours, theirs = result.get("ours", {}), result.get("torch_pruning", {})
    if "error" in ours:
        return f"{result['name']:<36} {ours['error']}"
    half = ours["0.5"]
    peer = theirs.get("error", "")[:60] or f"{theirs['parameters']:>12,} {theirs['difference']:.0e}"
    return (
        f"{result['name']:<36} {ours['parameters']:>12,} -> {half['parameters']:>12,} "
        f"{half['difference']:.0e} {len(ours['whole'])} whole {ours['trace_seconds']:.1f} s | {peer}"
    )


if __name__ == "__main__":
    main()
