"""Networks with unused parameters train on several devices without a search for unused parameters."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from networks import build_network

NETWORKS_WITH_UNUSED = {
    "TransBTS": ((8, 8, 16), {"embed_dim": 8, "num_layers": 1, "mlp_dim": 8, "dropout": 0.0, "stem_dropout": 0.0}),
    "STUNet_S": ((32, 32, 64), {"feat_size": (2, 2, 4, 4, 4, 4)}),
    "UNETR": ((16, 16, 32), {"hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "feature_size": 4}),
    "ResEncUNet": ((32, 32, 32), {"feat_size": (4, 4, 8), "n_blocks": (1, 1, 1)}),
}
OTHERS = [name for name in NETWORKS_WITH_UNUSED if name != "ResEncUNet"]
STEPS = 3


def make_network(name):
    torch.manual_seed(0)
    roi_size, options = NETWORKS_WITH_UNUSED[name]
    return build_network(name, 1, 2, roi_size, **options)


def train(network, name, batches):
    """Train a few steps, with BatchNorm in evaluation mode, in which the batch size does not matter."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eval()
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        image = torch.stack(
            [
                torch.randn(
                    1, *NETWORKS_WITH_UNUSED[name][0], generator=torch.Generator().manual_seed(10 * step + batch)
                )
                for batch in batches
            ]
        )
        network(image).square().mean().backward()
        optimizer.step()


def worker(rank, name, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    network = DistributedDataParallel(make_network(name))
    train(network, name, [rank])
    if rank == 0:
        torch.save(network.module.state_dict(), f"{folder}/weights.pth")
    del network  # freed after its group, it would wait for the threads of gloo with the GIL held
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["ResEncUNet", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_two_processes_train_like_one_with_twice_the_batch(name, tmp_path):
    alone = make_network(name)
    untrained = copy.deepcopy(alone.state_dict())
    assert any(not parameter.requires_grad for parameter in alone.parameters())
    train(alone, name, [0, 1])
    mp.spawn(worker, (name, str(tmp_path)), nprocs=2)
    together = torch.load(tmp_path / "weights.pth", weights_only=True)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-5)
    moved = [key for key, value in untrained.items() if not torch.equal(together[key], value)]
    assert len(moved) > len(untrained) / 2
