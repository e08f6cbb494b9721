"""Sentences on what was trained and pruned, from the results of a sweep, as LaTeX with citations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.analysis.latex import escape_latex
from orchestrator.analysis.settings import HASH, TRIPLE
from orchestrator.config import method_name
from orchestrator.formatting import joined
from orchestrator.report.references import references_for
from orchestrator.space.catalog import items
from pruning.user_code.own_code import shown

if TYPE_CHECKING:
    from pandas import DataFrame

NONE = ("none", "None", "nan", "", "0", "0.0", "False", "constant")
SPLITS = {"train": "training", "test": "testing"}
MOST_AMOUNTS, MOST_NUMBERS, DIGEST_LENGTH = 16, 8, 16
WHEN = {"after": "after training", "init": "at initialisation", "during": "during training"}
# Fields of a recipe that are named where they are on, in the order of the text.
RECIPE = {
    "train.momentum": "momentum {}",
    "train.nesterov": "Nesterov's momentum",
    "train.weight_decay": "weight decay {}",
    "train.warmup_epochs": "a warm-up of {} epochs",
    "train.clip_norm": "gradients clipped at a norm of {}",
    "train.label_smoothing": "label smoothing {}",
    "train.mixup": "mixup {}",
    "train.ema": "a moving average of the weights with decay {}",
    "train.channels_last": "filters in the memory format channels-last",
}


def shortened(texts: Sequence[str], *, most: int = MOST_NUMBERS) -> list[str]:
    """Return numbers and percentages as they are, or of more than `most` their count and range.

    Texts that are no numbers are never left out.
    """
    if len(texts) <= most:
        return list(texts)
    try:
        ordered = sorted(texts, key=lambda text: float(text.removesuffix("%")))
    except ValueError:
        return list(texts)
    return [f"{len(texts)} values from {ordered[0]} to {ordered[-1]}"]


class MethodsText:
    """Sentences on finished trials, rows of `results`.

    `uses` collects what was cited, in the order of the text, and `unknown` what has a paper without BibTeX.
    """

    def __init__(self, results: DataFrame) -> None:
        self._results = results
        self.uses: list[str] = []
        self.unknown: list[str] = []

    def cite(self, *uses: str) -> str:
        """Return `~\\cite{...}` for these, or "" where none has an entry."""
        self.uses += uses
        keys = dict.fromkeys(entry.key for use in uses for entry in references_for(use))
        return f"~\\cite{{{','.join(keys)}}}" if keys else ""

    def cite_method(self, kind: str, text: str) -> str:
        """Return the citation of a method in text form; one with a paper and no entry becomes unknown."""
        name = method_name(text)
        use = f"{kind}/{name.partition('.')[0] if kind == 'models' else name}"
        if not references_for(use):
            papers = [item.paper for item in items(kind) if item.name == name and item.paper]
            self.unknown += [f"{name}: {paper}" for paper in papers if f"{name}: {paper}" not in self.unknown]
        return self.cite(use)

    def values(self, column: str) -> list[str]:
        """Return the different values of a column as texts, in the order of the plan; [] without it."""
        if column not in self._results:
            return []
        values = self._results[column].drop_duplicates()
        texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values if v is not None and v == v]
        return list(dict.fromkeys(HASH.sub(r"\1", shown(text)) for text in texts))

    def names(self, column: str) -> set[str]:
        """Return the names of a column's methods, without options."""
        return set(map(method_name, self.values(column)))

    def networks(self, split_sizes: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
        """Yield the networks, and the data sets with their numbers of images and digests."""
        models = [f"{escape_latex(name)}{self.cite_method('models', name)}" for name in self.values("model")]
        yield f"The networks are {joined(models)}."
        pairs = self._results[["dataset", "data_sha256"]].drop_duplicates()
        texts = []
        for dataset, digest in pairs.itertuples(index=False):
            sizes = [f"{n:,} images for {SPLITS.get(s, s)}" for s, n in split_sizes.get(dataset, {}).items()]
            facts = [*sizes, f"SHA-256 {digest[:DIGEST_LENGTH]}" if digest else "of unknown digest"]
            name = escape_latex(shown(str(dataset)))
            texts.append(f"{name}{self.cite_method('datasets', str(dataset))} ({', '.join(facts)})")
        yield f"The data are {joined(texts)}."
        if (starts := self.values("start")) and starts != ["scratch"]:
            sources = joined(self.values("ancestor_sha256")) or "unknown"
            yield f"Networks start from {joined(starts)} (source network {sources})."

    def training(self) -> Iterator[str]:
        """Yield the recipe of the dense trainings."""
        optimizers = [f"{name}{self.cite('optimizers/' + name)}" for name in self.values("train.optimizer")]
        facts = [f"learning rate {self._joined('train.lr')}"]
        facts += self._options()
        schedules = self._methods("train.schedule", "lr_schedules") or "constant"
        yield (
            f"Dense networks are trained for {self._joined('train.epochs')} epochs by {joined(optimizers)} "
            f"in batches of {self._joined('batch_size')} ({', '.join(facts)}; the rate is {schedules}); "
            "the weights after the last epoch are used."
        )
        if augmentations := self._methods("train.augment", "augmentations"):
            yield f"Training images are augmented by {augmentations}."

    def _options(self) -> Iterator[str]:
        for column, text in RECIPE.items():
            if column == "train.momentum" and "sgd" not in self.values("train.optimizer"):
                continue  # only SGD reads it
            values = self.values(column)
            if any(value not in NONE for value in values):
                cites = self.cite(f"recipe/{column.removeprefix('train.')}")
                yield f"{text.format(joined(shortened(values)))}{cites}"

    def pruning(self) -> Iterator[str]:
        """Yield what was pruned, by how much, when, and what followed."""
        amounts = shortened(self.values("amount_text") or self.values("amount"), most=MOST_AMOUNTS)
        techniques = joined(self._techniques())
        yield f"Networks are pruned by {techniques}, with amounts of {escape_latex(joined(amounts))}."
        moments = joined(WHEN.get(value, value) for value in self.values("when")) or WHEN["after"]
        schedules = self._methods("schedule", "schedules", all_names=True)
        recoveries = self._methods("recover", "recoveries") or "no training"
        yield f"They are pruned {moments} by the schedule {schedules}, followed by {recoveries}."
        if preparations := self._methods("prepare", "preparations"):
            yield f"Training before pruning is prepared by {preparations}."
        if distillations := self._methods("distill", "distillations"):
            yield f"Recoveries learn from the dense network by {distillations}."
        if controls := [value for value in self.values("control") if value not in NONE]:
            texts = [f"{name}{self.cite(f'controls/{name}')}" for name in controls]
            yield f"Controls: {joined(texts)}."
        if protected := [value for value in self.values("protect") if value not in NONE]:
            yield f"Never pruned: {escape_latex(joined(protected))}."

    def _techniques(self) -> Iterator[str]:
        """Yield each criterion with what it removes and what competes; techniques are these three."""
        for criterion, granularity, scope in (
            self._results[list(TRIPLE)].drop_duplicates().itertuples(index=False)
        ):
            removed = f"{escape_latex(str(granularity))}{self.cite_method('granularities', str(granularity))}"
            name = f"{escape_latex(shown(str(criterion)))}{self.cite_method('criteria', str(criterion))}"
            compete = f"{escape_latex(str(scope))}{self.cite(f'scopes/{scope}')}"
            yield f"criterion {name} (granularity {removed}, scope {compete})"

    def _methods(self, column: str, kind: str, *, all_names: bool = False) -> str:
        """Return the methods of a column with citations; "" where there are none, or only defaults."""
        values = self.values(column)
        if not all_names and all(value in NONE for value in values):
            return ""
        texts = []
        for value in values:
            parts = [part.strip() for part in value.split(" + ")]  # augmentations are joined so
            cites = "".join(self.cite_method(kind, part) for part in parts)
            name = "no training" if (column, value) == ("recover", "none") else value
            texts.append(f"{escape_latex(name)}{cites}")
        return joined(texts)

    def _joined(self, column: str) -> str:
        return joined(shortened(self.values(column)))

    def numerics(self) -> str:
        """Return device, precision and threads."""
        device, precision = self._joined("numerics.device"), self._joined("numerics.precision")
        threads = self._joined("numerics.threads")
        unit = "thread" if threads == "1" else "threads"
        is_fast = "numerics.fast" in self._results and self._results["numerics.fast"].eq(True).any()
        fast = ", factors of products rounded to TF32 and kernels not deterministic" if is_fast else ""
        is_compiled = "numerics.compile" in self._results and self._results["numerics.compile"].eq(True).any()
        compiled = ", compiled by torch.compile" if is_compiled else ""
        how = f"{fast}{compiled}{self._devices()}"
        return f"trials ran on {device} in {precision} with {threads} {unit} each{how}"

    def _devices(self) -> str:
        """Return how several devices shared each batch; "" where there was one."""
        devices = self._joined("numerics.devices") if "numerics.devices" in self._results else ""
        if devices in ("", "1"):
            return ""
        column = "numerics.sync_batch_norm"
        is_together = column in self._results and self._results[column].eq(True).any()
        norms = ", with batch norm over all of them" if is_together else ""
        return f", with each batch shared by {devices} devices{norms}"
