"""The loss on responses in a batch of whole texts.

Called by SFT, and by PPO for the texts that it mixes in. Only columns whose loss counts have
logits, where the model lets them be chosen.
"""

from rlhf_trainer.data.packing import PackedBatch, RowLayout, on_device
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.rl import SFTLoss, sft_loss
from rlhf_trainer.run.distributed import Ranks


def response_loss(
    model: TrainedModel, batch: PackedBatch, layout: RowLayout, normalizer: int, ranks: Ranks
) -> SFTLoss:
    """-log pi of all response tokens of `batch`, over `normalizer`.

    Args:
        model: an actor under training.
        batch: rows in `layout`, on the CPU.
        layout: what keeps rows apart.
        normalizer: number of response tokens that the loss is a mean of, over all ranks.
        ranks: for this rank's device.
    """
    columns, real = (on_device(each, ranks.device) for each in batch.response_columns())
    dtype = next(model.module.parameters()).dtype
    statistics = model(*batch.inputs(layout, dtype, ranks.device), columns)
    return sft_loss(statistics.logprobs, real, normalizer)
