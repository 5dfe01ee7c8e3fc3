"""The workloads themselves: each builds a training (or other) step and runs it until a deadline.

Random weights and generated inputs, but real input pipelines with worker processes, validation passes and checkpoints.
References: VGG, Inception, ResNet, BERT, DistilBERT, GPT-2, ViT and Llama as in torchvision, timm and transformers;
U-Net (Ronneberger et al. 2015); SchNet, DimeNet, PNA, NNConv as in PyTorch Geometric.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from plan import CNN, GNN, NLP, UNET
from torch import nn
from torch.utils.data import DataLoader, Dataset

Params = dict[str, Any]
Loss = Callable[[nn.Module, Any], torch.Tensor]
Batches = Callable[[], Iterator[Any]]

BANDS, OUT_BANDS = 13, 12
"""Channels of the U-Nets' images, as of a satellite."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a job ends (epoch s), on which all ``world`` processes that train together agree."""

    t_end: float
    world: int = 1

    def is_over(self) -> bool:
        """Return whether time is up; a process that went on alone would wait for the others for ever."""
        over = time.time() > self.t_end
        if self.world > 1:
            votes = torch.tensor([float(over)], device="cuda")
            torch.distributed.all_reduce(votes)
            over = bool(votes.item() > 0)
        return over


def run(name: str, params: Params, t_end: float, log: dict[str, Any], world: int = 1) -> None:
    """Run one workload until ``t_end`` (epoch s) and write what it got done into ``log`` (``steps``).

    Parameters
    ----------
    world : processes that train together, one a GPU; torch.distributed is set up by the caller
    """
    torch.backends.cudnn.benchmark = params["precision"] in ("bf16", "fp16") and params["tune"]
    tf32 = params["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    time.sleep(params["wait_s"])
    if name in (*CNN, *UNET, *NLP, *GNN, "GPT2", "ViT"):
        log["steps"] = _train_what_fits(name, params, Deadline(t_end, world))
        log["batch"] = params["batch"]
    else:
        other = {"LlamaDecode": decode, "FFTSolver": solve, "GEMM": multiply, "IdleNotebook": idle}[name]
        log["steps"] = other(params, t_end)


def _train_what_fits(name: str, params: Params, deadline: Deadline) -> int:
    """Return the steps done; where a batch does not fit into the GPU's memory it is halved, in ``params`` too."""
    while True:
        try:
            model, batches, loss = _build(name, params)
            return train(model, batches, loss, params, deadline)
        except torch.OutOfMemoryError:
            if params["batch"] < 2 or deadline.world > 1:
                raise
            params["batch"] //= 2
        model = batches = loss = None
        gc.collect()
        torch.cuda.empty_cache()


def _build(name: str, params: Params) -> tuple[nn.Module, Batches, Loss]:
    if name in (*CNN, "ViT"):
        return _image_classes(name, params)
    if name in UNET:
        return _image_to_image(name, params)
    if name in (*NLP, "GPT2"):
        return _language(name, params)
    return _molecular(name, params)


# -- training ----------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, 1e-3, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, 1e-4),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, 1e-4),
    "adamw": lambda weights: torch.optim.AdamW(weights, 5e-5),
}


def train(model: nn.Module, batches: Batches, loss_of: Loss, params: Params, deadline: Deadline) -> int:
    """Return the steps done until the deadline: epochs with a validation pass, and a checkpoint where asked for."""
    net: nn.Module = model.cuda().train()
    if deadline.world > 1:
        net = nn.parallel.DistributedDataParallel(net, device_ids=[0])
    optimizer = OPTIMIZERS[params["optimizer"]](net.parameters())
    scaler = torch.amp.GradScaler("cuda", enabled=params["precision"] == "fp16")
    steps = 0
    while not deadline.is_over():
        for i, batch in enumerate(batches()):
            with _autocast(params["precision"]):
                loss = loss_of(net, batch)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            steps += 1
            if i % 10 == 0:
                loss.item()
            if i + 1 >= params["epoch_steps"] or deadline.is_over():
                break
        if deadline.is_over():
            break
        _validate(net, batches, loss_of, params, deadline)
        if params["checkpoint"] and not deadline.is_over():
            with tempfile.NamedTemporaryFile() as file:
                torch.save(model.state_dict(), file)
    torch.cuda.synchronize()
    return steps


def _validate(net: nn.Module, batches: Batches, loss_of: Loss, params: Params, deadline: Deadline) -> None:
    net.eval()
    with torch.no_grad():
        for i, batch in enumerate(batches()):
            with _autocast(params["precision"]):
                loss_of(net, batch).item()
            if i + 1 >= params["validation_steps"] or deadline.is_over():
                break
    net.train()


def _autocast(precision: str) -> torch.autocast:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast("cuda", dtype=half or torch.bfloat16, enabled=half is not None)


def _on_gpu(loader: DataLoader[Any]) -> Batches:
    def batches() -> Iterator[Any]:
        for x, y in loader:
            yield x.to("cuda", non_blocking=True), y.to("cuda", non_blocking=True)

    return batches


# -- images ------------------------------------------------------------------------------------------------------------


class Images(Dataset[Any]):
    """Random pictures, cropped, flipped and normalised as a training pipeline does; shape (channels, crop, crop)."""

    def __init__(self, channels: int, crop: int, margin: int, is_class: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        side = crop + margin
        self._pool = torch.randint(0, 256, (64, channels, side, side), dtype=torch.uint8, generator=generator)
        self._crop, self._margin, self._is_class = crop, margin, is_class

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, Any]:
        image = self._pool[i % 64]
        if self._margin:
            y, x = random.randint(0, self._margin), random.randint(0, self._margin)
            image = image[:, y : y + self._crop, x : x + self._crop]
        if random.random() < 0.5:
            image = image.flip(-1)
        pixels = image.float().div_(255).sub_(0.45).div_(0.225)
        return (pixels, i % 1000) if self._is_class else (pixels, pixels[:OUT_BANDS])


def _image_loader(images: Images, params: Params) -> DataLoader[Any]:
    return DataLoader(
        images,
        params["batch"],
        num_workers=params["workers"],
        pin_memory=True,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=2,
    )


def _image_classes(name: str, params: Params) -> tuple[nn.Module, Batches, Loss]:
    images = Images(3, params["image_size"], 32, is_class=True)
    loader = _image_loader(images, params)
    return _cnn(name), _on_gpu(loader), lambda net, batch: F.cross_entropy(net(batch[0]), batch[1])


def _cnn(name: str) -> nn.Module:
    import timm
    import torchvision.models as tv

    if name == "ViT":
        return timm.create_model("vit_base_patch16_224", pretrained=False)
    if name.startswith("VGG"):
        return getattr(tv, name.lower())(weights=None)
    if name == "Inception3":
        return tv.inception_v3(weights=None, aux_logits=False, init_weights=False)
    if name == "Inception4":
        return timm.create_model("inception_v4", pretrained=False)
    if name.endswith("_v2"):
        return timm.create_model("resnetv2_" + name[6:9], pretrained=False)
    model = getattr(tv, "resnet" + name[6:].split("_", maxsplit=1)[0])(weights=None)
    if name != "ResNet50_v1.5":  # version 1 strides in a block's first convolution of 1 x 1
        for layer in (model.layer2, model.layer3, model.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return model


class _DoubleConv(nn.Sequential):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """A U-Net of ``depth`` steps down, ``filters`` channels at the top."""

    def __init__(self, depth: int, filters: int) -> None:
        super().__init__()
        width = [filters * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList([_DoubleConv(a, b) for a, b in zip([BANDS, *width], width, strict=False)])
        upward = list(reversed(range(depth)))
        self.up = nn.ModuleList([nn.ConvTranspose2d(width[i + 1], width[i], 2, stride=2) for i in upward])
        self.fuse = nn.ModuleList([_DoubleConv(2 * width[i], width[i]) for i in upward])
        self.head = nn.Conv2d(filters, OUT_BANDS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, fuse in zip(self.up, self.fuse, strict=True):
            x = fuse(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


def _image_to_image(name: str, params: Params) -> tuple[nn.Module, Batches, Loss]:
    loader = _image_loader(Images(BANDS, params["image_size"], 0, is_class=False), params)
    model = UNet(int(name[1]), int(name[3:]))
    return model, _on_gpu(loader), lambda net, batch: F.mse_loss(net(batch[0]), batch[1])


# -- language ----------------------------------------------------------------------------------------------------------


class Tokens(Dataset[Any]):
    """Random sentences of ``length`` tokens, of two classes."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self._length, self._vocabulary = length, vocabulary

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.randint(0, self._vocabulary, (self._length,)), i % 2


def _language(name: str, params: Params) -> tuple[nn.Module, Batches, Loss]:
    import transformers as hf

    if name == "Bert":
        model, vocabulary = hf.BertForSequenceClassification(hf.BertConfig()), 30522
    elif name == "DistillBert":
        model, vocabulary = hf.DistilBertForSequenceClassification(hf.DistilBertConfig()), 30522
    else:
        model, vocabulary = hf.GPT2LMHeadModel(hf.GPT2Config()), 50257
    tokens = Tokens(params["length"], vocabulary)
    loader = DataLoader(tokens, params["batch"], num_workers=2, pin_memory=True, persistent_workers=True)
    if name == "GPT2":
        return model, _on_gpu(loader), lambda net, batch: net(input_ids=batch[0], labels=batch[0]).loss
    return model, _on_gpu(loader), lambda net, batch: net(input_ids=batch[0], labels=batch[1]).loss


# -- molecules ---------------------------------------------------------------------------------------------------------


def make_molecules(n: int, seed: int, atoms_max: int) -> list[Any]:
    """Return ``n`` made-up molecules: a chain of 9 to ``atoms_max`` atoms with a few more bonds."""
    from torch_geometric.data import Data

    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = int(rng.integers(9, atoms_max + 1))
        at = torch.tensor(np.cumsum(rng.normal(0, 0.75, (atoms, 3)), 0), dtype=torch.float)
        chain = np.arange(atoms - 1)
        bonds = np.concatenate([np.stack([chain, chain + 1]), rng.integers(0, atoms, (2, max(1, atoms // 6)))], 1)
        bonds = np.concatenate([bonds, bonds[::-1]], 1)
        found.append(
            Data(
                z=torch.tensor(rng.integers(1, 9, atoms)),
                pos=at,
                edge_index=torch.tensor(bonds, dtype=torch.long),
                x=torch.randn(atoms, 11),
                edge_attr=torch.rand(bonds.shape[1], 5),
                bond=torch.tensor(rng.integers(0, 4, bonds.shape[1])),
                y=torch.randn(1),
            )
        )
    return found


def _molecular(name: str, params: Params) -> tuple[nn.Module, Batches, Loss]:
    from torch_geometric.loader import DataLoader as GraphLoader

    molecules = make_molecules(2000, 1, params["atoms_max"])
    loader = GraphLoader(
        molecules,
        params["batch"],
        shuffle=True,
        num_workers=params["workers"] // 2,
        persistent_workers=True,
        drop_last=True,
    )

    def batches() -> Iterator[Any]:
        while True:
            for batch in loader:
                yield batch.to("cuda", non_blocking=True)

    by_position: Loss = lambda net, b: F.l1_loss(net(b.z, b.pos, b.batch).view(-1), b.y)  # noqa: E731
    if name == "Schnet":
        return _schnet(), batches, by_position
    if name == "Dimenet":
        return _dimenet(), batches, by_position
    if name == "PNA":
        return PNANet(_degrees(molecules)), batches, lambda net, b: F.l1_loss(net(b), b.y)
    return NNConvNet(), batches, lambda net, b: F.mse_loss(net(b), b.y)


def _schnet() -> nn.Module:
    from torch_geometric.nn.models import SchNet

    def graph(at: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        edges = _radius_graph(at, batch, 10.0)
        return edges, (at[edges[0]] - at[edges[1]]).norm(dim=-1)

    return SchNet(hidden_channels=128, num_filters=128, num_interactions=6, interaction_graph=graph)


def _dimenet() -> nn.Module:
    from torch_geometric.nn.models import dimenet

    # those of PyTorch Geometric need compiled extensions
    dimenet.radius_graph = lambda pos, r, batch=None, **_: _radius_graph(pos, batch, r)
    dimenet.triplets = _triplets
    return dimenet.DimeNet(
        hidden_channels=128, out_channels=1, num_blocks=6, num_bilinear=8, num_spherical=4, num_radial=6
    )


def _radius_graph(at: torch.Tensor, batch: torch.Tensor, radius: float) -> torch.Tensor:
    """Return the pairs of atoms of one molecule that are closer than ``radius``, shape (2, n_edges)."""
    near = (torch.cdist(at, at) < radius) & (batch[:, None] == batch[None, :])
    near.fill_diagonal_(False)
    return near.nonzero().t().contiguous()


def _triplets(edges: torch.Tensor, num_nodes: int) -> tuple[torch.Tensor, ...]:
    """Return DimeNet's triplets k -> j -> i of edges (col, row, i, j, k, edge kj, edge ji)."""
    row, col = edges
    order = col.argsort()
    degree = torch.bincount(col, minlength=num_nodes)
    first = degree.cumsum(0) - degree
    count = degree[row]
    ji = torch.repeat_interleave(torch.arange(row.numel(), device=row.device), count)
    offset = torch.arange(ji.numel(), device=row.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
    kj = order[first[row][ji] + offset]
    i, j, k = col[ji], row[ji], row[kj]
    apart = i != k
    return col, row, i[apart], j[apart], k[apart], kj[apart], ji[apart]


def _degrees(molecules: list[Any]) -> torch.Tensor:
    degrees = torch.zeros(64, dtype=torch.long)
    for molecule in molecules:
        found = torch.bincount(molecule.edge_index[1], minlength=molecule.num_nodes)
        degrees += torch.bincount(found, minlength=64)[:64]
    return degrees


class PNANet(nn.Module):
    """Principal neighbourhood aggregation, as in PyTorch Geometric's example on ZINC."""

    def __init__(self, degrees: torch.Tensor) -> None:
        super().__init__()
        from torch_geometric.nn import PNAConv

        aggregators, scalers = ["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"]
        self.atom, self.bond = nn.Embedding(28, 75), nn.Embedding(4, 50)
        self.layers = nn.ModuleList(
            PNAConv(75, 75, aggregators, scalers, degrees, edge_dim=50, towers=5, pre_layers=1, post_layers=1)
            for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(75) for _ in range(4))
        self.head = nn.Sequential(nn.Linear(75, 50), nn.ReLU(), nn.Linear(50, 25), nn.ReLU(), nn.Linear(25, 1))

    def forward(self, batch: Any) -> torch.Tensor:
        from torch_geometric.nn import global_add_pool

        x, bonds = self.atom(batch.z), self.bond(batch.bond)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x, batch.edge_index, bonds)))
        return self.head(global_add_pool(x, batch.batch)).view(-1)


class NNConvNet(nn.Module):
    """Message passing with edge networks, as in PyTorch Geometric's example on QM9."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        from torch_geometric.nn import NNConv, Set2Set

        edge_net = nn.Sequential(nn.Linear(5, 128), nn.ReLU(), nn.Linear(128, width * width))
        self.first = nn.Linear(11, width)
        self.conv = NNConv(width, width, edge_net, aggr="mean")
        self.gru = nn.GRU(width, width)
        self.pool = Set2Set(width, processing_steps=3)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, batch: Any) -> torch.Tensor:
        out = F.relu(self.first(batch.x))
        hidden = out.unsqueeze(0)
        for _ in range(3):
            message = F.relu(self.conv(out, batch.edge_index, batch.edge_attr))
            out, hidden = self.gru(message.unsqueeze(0), hidden)
            out = out.squeeze(0)
        return self.head(self.pool(out, batch.batch)).view(-1)


# -- other kinds -------------------------------------------------------------------------------------------------------


def decode(params: Params, t_end: float) -> int:
    """Generate text with a Llama of 1.1 B weights; return the tokens."""
    import transformers as hf

    config = hf.LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = hf.LlamaForCausalLM(config).eval()
    tokens = 0
    while time.time() < t_end:
        prompt = torch.randint(0, 32000, (params["batch"], params["length"]), device="cuda")
        with torch.no_grad():
            out = model(prompt, use_cache=True)
            for _ in range(random.randint(60, 400)):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                tokens += params["batch"]
                if time.time() > t_end:
                    break
        time.sleep(random.expovariate(2.0) if random.random() < 0.5 else 0)
    return tokens


def solve(params: Params, t_end: float) -> int:
    """Solve a nonlinear wave equation by split steps of a 2-D Fourier transform; return the steps."""
    n = params["size"]
    u = torch.randn(n, n, device="cuda", dtype=torch.complex64)
    k = torch.fft.fftfreq(n, device="cuda")
    laplacian = -(k[:, None] ** 2 + k[None, :] ** 2)
    steps = 0
    with tempfile.TemporaryDirectory() as folder:
        while time.time() < t_end:
            for _ in range(50):
                u = torch.fft.ifft2(torch.fft.fft2(u) * torch.exp(laplacian * 0.01))
                u = u * torch.exp(-0.001j * u.abs() ** 2)
            steps += 50
            u.abs().max().item()
            if steps % 2000 == 0:
                np.save(os.path.join(folder, "snapshot.npy"), u.cpu().numpy())  # noqa: PTH118
    return steps


def multiply(params: Params, t_end: float) -> int:
    """Multiply matrices with short pauses; return the products."""
    n = params["size"] * 2
    half = params["precision"] in ("fp16", "bf16")
    a = torch.randn(n, n, device="cuda", dtype=torch.float16 if half else torch.float32)
    products = 0
    while time.time() < t_end:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()
        products += 20
        if random.random() < 0.1:
            time.sleep(random.uniform(0, 0.5))
    return products


def idle(params: Params, t_end: float) -> int:
    """Behave like somebody at a notebook: mostly nothing, now and then a few products; return the bursts."""
    x = torch.randn(4096, 4096, device="cuda")
    bursts = 0
    while time.time() < t_end:
        time.sleep(random.uniform(0.5, 4))
        if random.random() < 0.5:
            for _ in range(random.randint(1, 40)):
                x @ x
            torch.cuda.synchronize()
            bursts += 1
    return bursts
