from __future__ import annotations

from itertools import combinations

import pytest

from features.variant import Variant
from features.windows import CHALLENGE_CHANNELS, WindowSpec
from ingest.schemas import GPU_SAMPLES

NUMBERS = tuple(name for name in GPU_SAMPLES.columns if name not in GPU_SAMPLES.key)


def test_variants_that_differ_in_anything_have_names_that_do():
    variants = [
        Variant("statistical"),
        Variant("statistical", channels=("power_w",)),
        Variant("statistical", channels=CHALLENGE_CHANNELS[::-1]),
        Variant("statistical", channels=NUMBERS),
        Variant("statistical", channels=NUMBERS[:-1]),
        Variant("statistical", WindowSpec(60.0000001)),
        Variant("statistical", WindowSpec(60, "slide", stride_s=1 / 3)),
        Variant("statistical", WindowSpec(60, "slide", stride_s=0.333333)),
        Variant("statistical", WindowSpec(60, samples_per_s=9.0000001)),
        Variant("statistical", WindowSpec(60, max_gap_s=1.0)),
        Variant("statistical", WindowSpec(60, max_gap_s=1.0, even=True)),
        Variant("statistical", WindowSpec(60, max_gap_s=1.0000001)),
    ]
    assert [(a, b) for a, b in combinations(variants, 2) if a.name == b.name] == []


def test_a_name_fits_into_a_folder_whatever_the_channels():
    assert len(Variant("statistical", channels=NUMBERS).name) < 200


@pytest.mark.parametrize("channels", [(), ("power",), ("power_w", "power_w")])
def test_channels_that_no_sample_has_are_refused_by_name(channels):
    with pytest.raises(ValueError, match=r"^channels are .*; give each once, of gpu_samples' columns job_id, node"):
        Variant("statistical", channels=channels)
