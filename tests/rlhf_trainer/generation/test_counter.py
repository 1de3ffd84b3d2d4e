"""Random numbers by counter: the published figures, and numbers that are uniform and apart."""

import numpy as np
import pytest
import torch

from rlhf_trainer.generation.counter import Purpose, RowSeeds, philox

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param(
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            id="zeros",
        ),
        pytest.param(
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="digits of pi",
        ),
    ],
)
def test_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    found = philox([torch.tensor(word) for word in counter], key)
    assert tuple(int(word) for word in found) == expected


def test_numbers_are_uniform() -> None:
    drawn = RowSeeds(7, range(1000)).uniforms(100, CPU).flatten()
    assert drawn.dtype == torch.float64
    assert 0 <= float(drawn.min()) < 1e-4
    assert 1 - 1e-4 < float(drawn.max()) < 1
    counts = np.histogram(drawn.numpy(), bins=100, range=(0, 1))[0]
    # 99.9 % of a chi-square distribution with 99 degrees of freedom lies below.
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 148.2
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("lag", [1, 100], ids=["tokens", "rows"])
def test_neighbours_are_independent(lag: int) -> None:
    drawn = RowSeeds(7, range(1000)).uniforms(100, CPU).flatten().numpy()
    # Of 100,000 pairs the correlation has a standard deviation of 0.003.
    assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 0.012


def test_a_number_depends_on_seed_update_row_token_and_purpose_alone() -> None:
    seeds = RowSeeds(3, [5, 9, 2], update=4)
    whole = seeds.uniforms(6, CPU)
    assert torch.equal(seeds[[2, 0]].uniforms(4, CPU), whole[[2, 0], :4])
    assert torch.equal(RowSeeds(3, [9], update=4).uniforms(6, CPU)[0], whole[1])
    others = [
        RowSeeds(4, [5], update=4),
        RowSeeds(3 + (1 << 32), [5], update=4),
        RowSeeds(3, [6], update=4),
        RowSeeds(3, [5], update=5),
        RowSeeds(3, [5], update=4, purpose=Purpose.EVALUATION),
        RowSeeds(3, [5], update=4, purpose=Purpose.CHECK),
    ]
    for other in others:
        assert not (other.uniforms(6, CPU)[0] == whole[0]).any(), other
