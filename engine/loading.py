"""The processes that load data beside the one that trains or predicts."""

from typing import Any

from torch.utils.data import DataLoader, Dataset

from engine.interruption import hold_requests, ignore_requests


class Loader(DataLoader[Any]):
    """PyTorch's DataLoader; its processes hear no request to stop, from their first moment on.

    Args: as DataLoader; those that follow the dataset by name.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=ignore_requests, **options)

    def __iter__(self) -> Any:
        with hold_requests():  # a process comes to ignore_requests some hundredths of a second after its start
            return super().__iter__()
