"""The estimate of memory where logits are made in chunks, by hand numbers."""

from dataclasses import replace

from transformers import GPT2Config

from rlhf_trainer.models.memory import (
    MicroBatch,
    allowance,
    cache_bytes,
    evaluation_allowance,
    logit_bytes,
)
from rlhf_trainer.models.sizes import Sizes

PLAIN = Sizes(
    layers=2, hidden=8, keys=8, intermediate=None, vocabulary=50, width=2, windows=(None, None)
)


def test_logits_in_chunks_by_hand() -> None:
    few = MicroBatch(sequences=4, length=900, logits=512, in_chunks=True)
    most = replace(PLAIN, vocabulary=2**14)
    more = replace(PLAIN, vocabulary=2**14 + 1)
    for learning in (True, False):
        # 4 * 512 * 2^14 = 2^25 are kept.
        expected = logit_bytes(replace(few, in_chunks=False), most, learning=learning)
        assert logit_bytes(few, most, learning=learning) == expected
        assert logit_bytes(few, more, learning=learning) == 3 * 4 * 2**25
    wide = GPT2Config(vocab_size=2**14 + 1, n_embd=16, n_layer=5, n_head=2)
    # The same of whatever reads them; a rollout has one column of logits, and its cache.
    saved = allowance(wide, replace(few, in_chunks=False), "BF16") - allowance(wide, few, "BF16")
    assert saved == (3 * 2 * 512 + 3 * 4 * 64) * 4 * (2**14 + 1) - 3 * 4 * 2**25
    one = replace(few, logits=1)
    rollout = cache_bytes(few, Sizes.of(wide, "BF16")) + (2 + 3 * 4) * 4 * (2**14 + 1)
    assert evaluation_allowance(wide, one, "BF16") == rollout
    assert evaluation_allowance(wide, few, "BF16") == 3 * 4 * 2**25
