"""How attention is dealt to cores."""

import pytest

from tt_flux_kontext.program_configs import attention_chunks


@pytest.mark.parametrize(
    "chunks,heads,lengths,cores",
    [
        (128, 24, (8192,), 64),  # 24 chunks a core: nothing to gain
        (192, 24, (2048, 128), 99),  # 288 chunks, of 297 that all cores could take in three rounds; of 128, 408 of 495
        (128, 24, (4096, 256), 99),  # of 64 the fewest cores would wait for others, but all of them for keys
        (64, 6, (512, 64), 64),  # one round, of whatever size
        # What tt-metal's tt_dit takes, by its measurements, for FLUX.1 from text: a T3K, four P150, a Blackhole Galaxy.
        (128, 6, (2048, 512), 56),
        (128, 12, (2048, 512), 99),
        (64, 6, (512, 512), 110),
    ],
)
def test_few_cores_wait(chunks, heads, lengths, cores):
    assert attention_chunks(128, heads, lengths, cores) == (chunks, 512)


def test_wide_heads_have_smaller_chunks():
    """Of keys as many numbers; the VAE's head has 512 features."""
    assert attention_chunks(512, 1, [128**2], 64) == (64, 128)
    assert attention_chunks(64, 1, [4096], 64)[1] == 512
