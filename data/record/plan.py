"""What is recorded: the names of the workloads, and the hyper-parameters drawn for each job.

Two jobs of one network must not look alike, or a classifier would learn the settings instead of the network. The draws
hold those of the first recording (batch h200-01) and are wider: sizes of images and of molecules vary too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

CNN = ("VGG11", "VGG16", "VGG19", "Inception3", "Inception4", "ResNet50", "ResNet50_v1.5")
CNN += ("ResNet101", "ResNet101_v2", "ResNet152", "ResNet152_v2")
UNET = tuple(f"U{depth}-{filters}" for depth in (3, 4, 5) for filters in (32, 64, 128))
NLP = ("Bert", "DistillBert")
GNN = ("Dimenet", "Schnet", "PNA", "NNConv")
CHALLENGE = (*CNN, *UNET, *NLP, *GNN)
"""The 26 networks of the MIT Supercloud Workload Classification Challenge."""

OTHER = ("LlamaDecode", "GPT2", "ViT", "FFTSolver", "GEMM", "IdleNotebook")
"""Kinds outside the challenge, which a classifier should call unknown."""

DATA_PARALLEL = (*CNN, *UNET, *NLP, "GPT2", "ViT")
"""Kinds that can also run on two GPUs."""

LABEL = {
    **{name: name for name in UNET},
    **{name: name.lower() for name in CNN},
    "Bert": "bert-base-uncased",
    "DistillBert": "distilbert-base-uncased",
    "Dimenet": "dimenet",
    "Schnet": "schnet",
    "PNA": "pna",
    "NNConv": "conv",
    "LlamaDecode": "llama-decode",
    "GPT2": "gpt2",
    "ViT": "vit-base",
    "FFTSolver": "fft-solver",
    "GEMM": "gemm",
    "IdleNotebook": "idle-notebook",
}
"""Workload to its label: the challenge's own spelling where it has the class."""


def draw(name: str, rng: random.Random) -> dict[str, Any]:
    """Return the hyper-parameters of one job of a kind."""
    drawn: dict[str, Any] = {
        "precision": rng.choice(["fp32", "tf32", "bf16", "fp16"]),
        "workers": rng.choice([2, 4, 6, 8]),
        "epoch_steps": rng.randint(12, 60),
        "validation_steps": rng.randint(2, 10),
        "checkpoint": rng.random() < 0.5,
        "optimizer": rng.choice(["sgd", "adam", "rmsprop"]),
        "wait_s": round(rng.uniform(0, 2), 2),
        "seed": rng.randint(0, 10**6),
        "tune": rng.random() < 0.2,
    }
    if name in CNN:
        drawn |= {"batch": rng.choice([32, 64, 128, 256]), "image_size": rng.choice(_image_sizes(name))}
    elif name in UNET:
        drawn |= {"batch": rng.choice([4, 8, 16]), "image_size": rng.choice([256, 320, 384])}
    elif name in (*NLP, "GPT2"):
        drawn |= {"batch": rng.choice([8, 16, 32]), "length": rng.choice([128, 256, 384, 512]), "optimizer": "adamw"}
    elif name in GNN:
        drawn |= {"batch": rng.choice([32, 64, 128, 256]), "atoms_max": rng.choice([18, 27, 36])}
        drawn |= {"optimizer": "adam", "precision": rng.choice(["fp32", "tf32"])}
    elif name == "ViT":
        drawn |= {"batch": rng.choice([32, 64, 128]), "image_size": 224}
    elif name == "LlamaDecode":
        drawn |= {"batch": rng.choice([1, 4, 16]), "length": rng.choice([64, 256, 1024])}
    else:
        drawn["size"] = rng.choice([1024, 2048, 4096])
    return drawn


def _image_sizes(name: str) -> list[int]:
    return [256, 299, 320] if name.startswith("Inception") else [160, 192, 224, 256]


Round = list[tuple[str, int, dict[str, Any]]]
"""Jobs that run at the same time: workload, number of GPUs, hyper-parameters."""


def first_batch(seed: int) -> list[Round]:
    """Return one job of each class of the challenge, two at a time, in random order."""
    rng = random.Random(seed)
    names = list(CHALLENGE)
    rng.shuffle(names)
    return _pairs([(name, 1, draw(name, rng)) for name in names])


def mixed_batch(seed: int, rounds: int) -> list[Round]:
    """Return rounds of which a third of the jobs are outside the challenge, and some run on both GPUs."""
    rng = random.Random(seed)
    inside: list[str] = []
    jobs: list[tuple[str, int, dict[str, Any]]] = []
    found: list[Round] = []
    while len(found) < rounds:
        if not inside:
            inside = rng.sample(CHALLENGE, len(CHALLENGE))
        name = rng.choice(OTHER) if rng.random() < 1 / 3 else inside.pop()
        gpus = 2 if name in DATA_PARALLEL and rng.random() < 0.15 else 1
        if gpus == 2:
            found.append([(name, 2, draw(name, rng))])
        else:
            jobs.append((name, 1, draw(name, rng)))
        if len(jobs) == 2:
            found.append(jobs)
            jobs = []
    return found


def _pairs(jobs: Sequence[tuple[str, int, dict[str, Any]]]) -> list[Round]:
    return [list(jobs[i : i + 2]) for i in range(0, len(jobs), 2)]
