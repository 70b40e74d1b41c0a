"""Codebooks on two gloo processes are bit-equal, and those of one process on the global batch."""

import gc
import os
import socket
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ibreg import KeyValueBottleneck, Regularized, unlearn

FEATURES, CLASSES = 6, 3
OPTIONS = {"codebooks": 4, "pairs": 16, "key_features": 4}


def data(samples=120, seed=0):
    return torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(seed))


def assert_equal_on_all_ranks(layer):
    for key, value in layer.state_dict().items():
        copies = [torch.empty_like(value) for _ in range(2)]
        distributed.all_gather(copies, value)
        assert torch.equal(*copies), key


def check_twenty_steps(rank, layer, parallel):
    """The ranks start from different projections and keys; batches are uneven, and every fifth is empty on rank 1."""
    assert layer.books.keys.isfinite().all()
    layer.initialize(data(60 + 20 * rank, seed=rank).split(20), epochs=2)
    assert_equal_on_all_ranks(layer)
    before = layer.books.keys.clone()
    model = Regularized(nn.Sequential(layer))
    model = DistributedDataParallel(model) if parallel else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(20):
        samples = 0 if step % 5 == 4 and rank == 1 else 8 + 4 * rank
        x = data(samples, seed=100 * rank + step)
        output = model(x).output
        if parallel:
            F.cross_entropy(output, torch.arange(samples) % CLASSES, reduction="sum").backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_equal_on_all_ranks(layer)
    assert not torch.equal(before, layer.books.keys)
    assert torch.equal(layer.books.keys, layer.books.sums / layer.books.counts.unsqueeze(-1))
    assert layer.usage.sum() == 4 * (20 * 8 + 16 * 12)

    layer.freeze_keys()
    frozen = layer.books.keys.clone()
    model(data(5, seed=rank))
    assert torch.equal(frozen, layer.books.keys)
    assert_equal_on_all_ranks(layer)


def check_no_rank_has_rows(rank):
    torch.manual_seed(0)
    layer = KeyValueBottleneck(FEATURES, CLASSES, **OPTIONS)
    layer.initialize(data(), epochs=1)
    before = layer.books.keys.clone()
    layer.measure(data(0))
    assert torch.equal(before, layer.books.keys)


def check_as_one_process(rank):
    x = data(24, seed=5)
    for search in ("exact", "product"):
        torch.manual_seed(0)
        layer = KeyValueBottleneck(FEATURES, CLASSES, search=search, **OPTIONS)
        layer.books.counts.fill_(1.0)
        layer.keys_follow.fill_(True)
        sums, counts = layer.books.sums.double(), layer.books.counts.double()
        keys, queries = layer.books.keys.double(), layer.books.halved(layer.queries_of(x)).double()
        nearest = torch.cdist(queries, keys).argmin(-1)
        one_hot = F.one_hot(nearest, layer.books.size).double()
        counts = 0.95 * counts + 0.05 * one_hot.sum(1)
        expected = (0.95 * sums + 0.05 * one_hot.mT @ queries) / counts.unsqueeze(-1)
        layer.measure(x[:7] if rank == 0 else x[7:])
        torch.testing.assert_close(layer.books.keys.double(), expected, rtol=1e-4, atol=1e-5)


def check_k_means_and_loaders_of_different_lengths(rank):
    torch.manual_seed(rank)
    layer = KeyValueBottleneck(FEATURES, CLASSES, **OPTIONS)
    own = data(30 if rank == 0 else 90, seed=rank)
    own[0] = float("nan")
    for method in ("k_means", "ema"):
        done = layer.initialize(own.split(30), method=method, epochs=1)
        assert (done.samples, done.skipped) == (118, 2)
        assert_equal_on_all_ranks(layer)
    with pytest.raises(ValueError, match="4 usable rows are too few for 16 keys"):
        layer.initialize(own[1:3])
    layer.initialize(own[:0] if rank == 0 else own, epochs=1)
    assert_equal_on_all_ranks(layer)


def check_unlearning_is_global(rank):
    """Each rank forgets its own rows, or one rank all of them; masks and accuracies are global."""
    torch.manual_seed(0)
    layer = KeyValueBottleneck(FEATURES, CLASSES, **OPTIONS)
    layer.freeze_keys()
    net = nn.Sequential(layer).eval()
    x, y = torch.randn(64, FEATURES), torch.arange(64) % CLASSES
    for by in ("activations", "examples"):
        for shares in ([(x[::2], y[::2]), (x[1::2], y[1::2])], [(x, y), None]):
            own = [] if shares[rank] is None else [shares[rank]]
            report = unlearn(net, own, by=by, pairs=9)
            masks = [torch.zeros_like(layer.masked) for _ in range(2)]
            distributed.all_gather(masks, layer.masked)
            assert torch.equal(*masks)
            assert report.pairs == 9
            accuracies = torch.tensor(report.forgotten)
            both = [torch.zeros_like(accuracies) for _ in range(2)]
            distributed.all_gather(both, accuracies)
            assert torch.equal(*both)
            report.undo()


def worker(rank, port):
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    early = [KeyValueBottleneck(FEATURES, CLASSES, search=search, **OPTIONS) for search in ("exact", "product")]
    for layer in early:
        layer.measure(data(5))
        layer.usage.zero_()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for layer, is_parallel in zip(early, (True, False), strict=True):
        check_twenty_steps(rank, layer, is_parallel)
    checks = (
        check_no_rank_has_rows,
        check_as_one_process,
        check_k_means_and_loaders_of_different_lengths,
        check_unlearning_is_global,
    )
    for check in checks:
        try:
            check(rank)
        except Exception as error:
            error.add_note(f"in {check.__name__} on rank {rank}")
            raise
    del early, layer
    gc.collect()  # a model that is freed after the group could not release its buckets
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
def test_codebooks_are_equal_on_all_ranks():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(port,), nprocs=2)
