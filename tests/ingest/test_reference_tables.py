from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import ingest
from ingest.reference import type_of

FOLDER = Path(ingest.__file__).parent


@pytest.fixture
def classes() -> pl.DataFrame:
    return pl.read_csv(FOLDER / "workload_classes.csv")


@pytest.fixture
def gpu_types() -> pl.DataFrame:
    return pl.read_csv(FOLDER / "gpu_types.csv", schema_overrides={"tdp_w": pl.Float64})


@pytest.mark.parametrize("name", ["workload_classes.csv", "gpu_types.csv"])
def test_each_row_has_a_source_and_a_name_of_its_own(name: str):
    table = pl.read_csv(FOLDER / name)
    assert table["source"].str.len_chars().min() > 20
    assert table.to_series(0).is_unique().all()


def test_the_challenge_has_26_classes_in_10_families_of_3_domains(classes: pl.DataFrame):
    challenge = classes.filter(pl.col("source").str.contains("2204.05839"))
    assert challenge.height == 26
    counts = dict(challenge.group_by("family").len().iter_rows())
    assert counts == {
        "VGG": 3,
        "ResNet": 6,
        "Inception": 2,
        "U-Net": 9,
        "BERT": 1,
        "DistilBERT": 1,
        "DimeNet": 1,
        "SchNet": 1,
        "PNA": 1,
        "NNConv": 1,
    }
    assert set(challenge["domain"]) == {"vision", "language", "graph"}


def test_a_family_has_one_domain(classes: pl.DataFrame):
    assert classes.group_by("family").agg(pl.col("domain").n_unique())["domain"].max() == 1


def test_every_name_of_nvml_has_a_source_of_its_own(gpu_types: pl.DataFrame):
    named = gpu_types.drop_nulls("nvml_name")
    assert named["source"].str.contains("NVML's name", literal=True).all()
    assert named["tdp_w"].null_count() == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Tesla V100-SXM2-32GB", "v100-sxm2"),
        ("Tesla V100-SXM2-32GB-LS", None),
        ("NVIDIA V100-SXM2-32GB", None),
        ("Tesla P100-PCIE-16GB", "p100-pcie"),
        ("A100-SXM4-40GB", "a100-sxm4"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm5"),
        ("NVIDIA H100", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
    ],
)
def test_a_gpu_is_known_by_the_whole_of_its_name_and_not_by_a_part(name: str, kind: str | None):
    assert type_of(name) == kind


def test_supercloud_v100_have_250_watts_and_the_recorded_h200_700(gpu_types: pl.DataFrame):
    tdp_w = dict(gpu_types.select("gpu_type", "tdp_w").iter_rows())
    assert (tdp_w["volta"], tdp_w["h200"]) == (250.0, 700.0)


def test_a_word_that_several_products_share_has_no_tdp_and_no_product(gpu_types: pl.DataFrame):
    shared = gpu_types.filter(pl.col("tdp_w").is_null())
    assert {"tesla", "v100", "a100", "h100"} <= set(shared["gpu_type"])
    assert shared["product"].null_count() == shared.height
    assert gpu_types.drop_nulls("tdp_w")["product"].null_count() == 0
