"""Small copies of models are made once for all that a stage asks of them."""

import torch
import zoo
from transformers import AutoConfig

from rlhf_trainer.models.layouts import forget_probes, probe_of
from rlhf_trainer.models.load import ModelSettings

CPU = torch.device("cpu")


def settings(attention: str = "eager") -> ModelSettings:
    return ModelSettings(torch.float32, attention, seed=1)


def test_a_probe_is_made_once_for_each_configuration() -> None:
    of_llama = probe_of(zoo.base("Llama"), settings(), CPU)
    assert probe_of(zoo.base("Llama"), settings(), CPU) is of_llama
    scored = AutoConfig.for_model("llama", num_hidden_layers=2)
    base = zoo.base(scored)
    other = probe_of(base, settings(), CPU)
    scored.num_labels, scored.architectures = 1, ["LlamaForSequenceClassification"]
    assert probe_of(zoo.base(scored), settings(), CPU) is other
    scored.num_hidden_layers = 3
    deeper = probe_of(zoo.base(scored), settings(), CPU)
    fused = probe_of(zoo.base(scored), settings("sdpa"), CPU)
    assert deeper.model.config.num_hidden_layers == 3
    assert len({id(each) for each in (of_llama, other, deeper, fused)}) == 4
    forget_probes()
    assert probe_of(zoo.base("Llama"), settings(), CPU) is not of_llama
