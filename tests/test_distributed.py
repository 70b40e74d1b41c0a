"""Two gloo processes give the gradients of one process on the whole batch, and never wait for each other in vain."""

import copy
import math
import os
import socket
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ibreg
from ibreg import Penalized, Regularized, VariationalBottleneck

FEATURES, CODE, CLASSES, BATCH = 4, 5, 3, 8
PRIORS = {"standard": {}, "learned": {"prior": "learned"}, "conditional": {"prior": "conditional", "classes": CLASSES}}


class Net(nn.Module):
    """A classifier whose noise is too small for float32 to see, and a part that no forward uses."""

    def __init__(self, **options):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, CODE), nn.ReLU())
        self.layer = VariationalBottleneck(CODE, beta=0.1, **options)
        self.head = nn.Linear(CODE, CLASSES)
        nn.init.constant_(self.layer.encoder.bias.data[CODE:], -30.0)
        nn.init.zeros_(self.layer.encoder.weight.data[CODE:])

    def forward(self, x):
        return self.head(self.layer(self.body(x)))


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, FEATURES, generator=generator), torch.arange(BATCH) % CLASSES


def network(**options):
    torch.manual_seed(0)
    return Net(**options)


def gradients(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def loss(model, x, y):
    return Penalized(nn.CrossEntropyLoss())(model(x, target=y), y)


def single(net, draws=1):
    model = Regularized(copy.deepcopy(net), draws=draws)
    loss(model, *data()).backward()
    return gradients(model)


def compare(measured, expected):
    assert measured.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(measured[name], gradient, rtol=1e-5, atol=1e-7)


def parallel(net, draws=1, **options):
    return DistributedDataParallel(Regularized(copy.deepcopy(net), draws=draws), **options)


def check_gradients(rank, half):
    for options in PRIORS.values():
        net = network(**options)
        for draws in (1, 2):
            model = parallel(net, draws=draws)
            loss(model, *half).backward()
            compare(gradients(model.module), single(net, draws))


def check_unused_parameters(rank, half):
    net = network(prior="conditional", classes=CLASSES)
    net.unused = nn.Linear(2, 2)
    model = parallel(net, draws=2, find_unused_parameters=True)
    for _ in range(2):
        model.zero_grad()
        loss(model, *half).backward()
        measured = {name: gradient for name, gradient in gradients(model.module).items() if "unused" not in name}
        compare(measured, single(net, draws=2))


def check_two_forwards_before_one_backward(rank, half):
    net = network(prior="learned")
    model = parallel(net)
    (loss(model, *half) + loss(model, *half)).backward()
    compare(gradients(model.module), {name: 2 * gradient for name, gradient in single(net).items()})


def check_accumulation(rank, half):
    net = network()
    model = parallel(net)
    (first, second) = zip(*(tensor.chunk(2) for tensor in half), strict=True)
    with model.no_sync():
        (loss(model, *first) / 2).backward()
    (loss(model, *second) / 2).backward()
    compare(gradients(model.module), single(net))


def check_beta_and_noise(rank, half):
    # Rank 0's beta is everybody's; noise is each rank's own.
    net = ibreg.inject(nn.Sequential(nn.Linear(FEATURES, 3)), {"0": VariationalBottleneck(3, start="identity")})
    model = parallel(net)
    if rank == 0:
        ibreg.bottlenecks(model)["0.bottleneck"].beta.fill_(0.5)
    torch.manual_seed(rank)
    output = model(torch.ones(4, FEATURES)).output
    assert ibreg.bottlenecks(model)["0.bottleneck"].beta == 0.5
    outputs = [torch.zeros_like(output) for _ in range(2)]
    distributed.all_gather(outputs, output.detach())
    assert not torch.equal(*outputs)


def check_fully_sharded(rank, half):
    mesh = init_device_mesh("cpu", (2,))
    for options in PRIORS.values():
        net = network(**options)
        model = Regularized(copy.deepcopy(net))
        fully_shard(model.model.layer, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh)
        loss(model, *half).backward()
        compare({name: gradient.full_tensor() for name, gradient in gradients(model).items()}, single(net))


def check_target_rate(rank, half):
    """Every rank sees another rate and holds the mean, with equal betas."""
    net = network()
    model = Regularized(net)
    schedule = ibreg.schedules.TargetRate(model, 1.0)
    output = model(half[0] * (1 + 3 * rank))
    (name,) = (name for name in output.logs if name.endswith("/rate"))
    rates = [torch.zeros(()) for _ in range(2)]
    distributed.all_gather(rates, output.logs[name])
    schedule.step(output)
    (layer,) = ibreg.bottlenecks(net).values()
    expected = layer.initial_beta * math.exp(0.03 * max(-1.0, min(1.0, math.log(float(sum(rates) / 2)))))
    assert rates[0] != rates[1]
    assert math.isclose(float(layer.beta), expected, rel_tol=1e-5)


def check_evaluation(rank, half):
    net = network(prior="conditional", classes=CLASSES)
    model = parallel(net).eval()
    expected = net.eval()(half[0])
    assert torch.equal(model(half[0]).output, expected)
    assert torch.equal(ibreg.predict(model, half[0]), expected)
    if rank == 0:  # a validation set of its own: nobody else takes part
        assert ibreg.predict(model, data()[0], draws=2, seed=0).shape == (BATCH, CLASSES)


def check_concept_layers(rank, half):
    """Concept labels reach each rank's layer; a rank whose samples have none takes part with a loss of 0."""
    layers = [("concept", {"code": code}) for code in ("probability", "hard", "logit")]
    layers.append(("concept_embedding", {"intervention_probability": 0.0}))
    concepts = (data()[0][:, :2] > 0).float()
    half_known = torch.cat([concepts[: BATCH // 2], torch.full((BATCH // 2, 2), torch.nan)])
    for name, options in layers:
        torch.manual_seed(0)
        layer = ibreg.build(name, in_features=CODE, concepts=2, out_features=CODE, **options)
        net = nn.Sequential(nn.Linear(FEATURES, CODE), nn.ReLU(), layer, nn.Linear(CODE, CLASSES))
        for labels, weight in ((concepts, 1.0), (half_known, 2.0)):
            whole = Regularized(copy.deepcopy(net))
            x, y = data()
            output = whole(x, target=y, concepts=labels)
            # Unlabeled samples are left out of the mean over the batch, of which a rank has only its own half.
            (nn.functional.cross_entropy(output.output, y) + output.penalty / weight).backward()
            model = parallel(net)
            Penalized(nn.CrossEntropyLoss())(
                model(half[0], target=half[1], concepts=labels.chunk(2)[rank]), half[1]
            ).backward()
            compare(gradients(model.module), gradients(whole))


CHECKS = [
    check_gradients,
    check_unused_parameters,
    check_two_forwards_before_one_backward,
    check_accumulation,
    check_beta_and_noise,
    check_fully_sharded,
    check_target_rate,
    check_concept_layers,
    check_evaluation,
]


def worker(rank, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    x, y = data()
    half = x.chunk(2)[rank], y.chunk(2)[rank]
    for check in CHECKS:
        try:
            check(rank, half)
        except Exception as error:
            error.add_note(f"in {check.__name__} on rank {rank}")
            raise
    distributed.destroy_process_group()
    # FSDP2 keeps the group's threads alive, which now and then abort an interpreter that goes away before them.
    os._exit(0)


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(port,), nprocs=2)
