"""What the data sets that torchvision reads share: their files, splits and facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orchestrator.data.downloads import reason_of
from orchestrator.data.paths import data_folder
from orchestrator.data.sources.base import DatasetInfo, Raw, Source
from orchestrator.data.sources.published_datasets import Published
from orchestrator.data.sources.published_files import check_published, fetch_published, missing_files
from orchestrator.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.sources.base import Indices

    Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(Source):
    """What all of them share; `row` is what differs."""

    row: ClassVar[Published]

    def fetch(self) -> bool:
        fetch_published(self.name, data_folder(), self.row.files)
        return True

    @classmethod
    def state(cls) -> str:
        return "not there" if any(missing_files(data_folder(), cls.row.files)) else "there"

    @contextmanager
    def checked_files(self) -> Iterator[Path]:
        """Yield the data folder. DataError for missing or corrupt files, and what torchvision raises."""
        root = data_folder()
        check_published(self.name, root, self.row.files)
        try:
            yield root
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        except MemoryError as error:
            raise DataError(f"{self.name} does not fit into memory; give fewer or smaller images") from error
        except Exception as error:  # torchvision's parsers raise whatever they meet
            raise DataError(
                f"{self.name}: its files in {root} are damaged: {type(error).__name__}: {reason_of(error)}"
            ) from error

    def describe(
        self, shape: tuple[int, int, int], names: tuple[str, ...], counts: Sequence[Sequence[int]]
    ) -> DatasetInfo:
        """Return the facts; `counts` are the images of each class in (train, validation, test)."""
        train, validation, test = map(tuple, counts)
        sizes = (sum(train), sum(validation), sum(test))
        return DatasetInfo(
            self.name,
            self.row.about,
            shape,
            len(names),
            *sizes,
            per_class=(train, validation, test),
            class_names=names,
        )


def published_indices(name: str, parts: Mapping[str, Labels]) -> tuple[Indices, Indices, Indices]:
    """Return the indices of (train, validation, test) of published splits that lie one after another.

    Without validation images a tenth of the training images are taken, as for the other data sets.
    """
    import numpy as np

    from orchestrator.data.splits import split_indices

    labels = np.concatenate(list(parts.values()))
    if "validation" in parts:
        ends = np.cumsum([len(part) for part in parts.values()])
        train, validation, test = np.split(np.arange(len(labels)), ends[:-1])
        return train, validation, test
    empty = np.empty((0, 0, 0, 0), dtype=np.uint8)
    return split_indices(name, Raw(empty, labels, len(parts["test"]), ()))
