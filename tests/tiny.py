"""Tokenizers, models, data and stages so small that a test trains them in seconds.

`import tiny` works in every test. What is written goes below the folder that the caller gives, and
is written once: asked again with the same folder, the same files are used, so that two attempts of
one stage have one configuration. Worlds of several ranks: see `worlds`.

    config = tiny.stage_config("ppo", tmp_path, update_epochs=2)   # everything it reads is there
    stages.ppo.run(config, tiny.ranks(), StopFlag())               # a world of one, in this process
"""

import atexit
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_api.v1alpha1 import (
    CheckpointPolicy,
    Dataset,
    JobReference,
    ModelSource,
    PPOStage,
    RewardStage,
    ScratchModel,
    SFTStage,
    StageConfig,
    StageSpec,
)
from rlhf_api.v1alpha1.sources import SCRATCH_ARCHITECTURES
from rlhf_trainer.models.heads import Actor, VocabularyHead
from rlhf_trainer.models.load import ModelSettings, load_causal_model, load_reward_base, save_model
from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.run.distributed import Ranks

# Threads of two processes that share a core wait for each other longer than such tensors take.
torch.set_num_threads(1)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ARCHITECTURES = SCRATCH_ARCHITECTURES
CHARACTERS = "abcdefghijklmnop .!"
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"

FP32 = ModelSettings(torch.float32, "sdpa", seed=1)
BF16 = ModelSettings(torch.bfloat16, "sdpa", seed=1)


# Tokenizers and models


def tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """One token a character; ids: pad 0, EOS 1, unknown 2, then the characters."""
    tokens = [PAD, EOS, UNK, *characters]
    model = models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNK)
    fast = Tokenizer(model)
    fast.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    fast.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=PAD, eos_token=EOS, unk_token=UNK
    )


def templated(template: str) -> PreTrainedTokenizerFast:
    """That tokenizer with a chat template."""
    words = tokenizer()
    words.chat_template = template
    return words


def tokenizer_folder(folder: Path, characters: str = CHARACTERS) -> Path:
    """A folder with that tokenizer in it."""
    if not folder.exists():
        with _appearing(folder) as new:
            tokenizer(characters).save_pretrained(new)
    return folder


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` at once, since ranks may write it together."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{os.getpid()}-{target.name}")
    yield new
    with suppress(OSError):  # another process has been faster
        new.rename(target)


def sizes(tokenizer_at: Path, **changed: Any) -> ScratchModel:
    """Sizes of a model of one layer; `changed` holds fields of ScratchModel."""
    settings: dict[str, Any] = {
        "layers": 1,
        "hidden_size": 16,
        "heads": 2,
        "max_positions": 64,
        "tokenizer": f"file://{tokenizer_at}",
    }
    return ScratchModel(**settings | changed)


def scratch_source(tokenizer_at: Path, architecture: str = "llama", **changed: Any) -> ModelSource:
    """A model with random weights, as a job names it."""
    return ModelSource(uri=f"scratch://{architecture}", scratch=sizes(tokenizer_at, **changed))


def location(tokenizer_at: Path, architecture: str = "llama", **changed: Any) -> ModelLocation:
    """The same as a stage finds it."""
    return ModelLocation(
        str(tokenizer_at), scratch=sizes(tokenizer_at, **changed), architecture=architecture
    )


def causal_model(
    tokenizer_at: Path,
    architecture: str = "llama",
    settings: ModelSettings = FP32,
    *,
    shaken: bool = True,
    **changed: Any,
) -> PreTrainedModel:
    """A causal model; `shaken`, its logits differ by whole nats and not by hundredths."""
    words = tokenizer_of(tokenizer_at)
    model = load_causal_model(
        location(tokenizer_at, architecture, **changed), words, settings, "model"
    )
    return shake(model) if shaken else model


def in_chunks(actor: Actor) -> Actor:
    """The actor, whose head, if it makes the logits, makes no more than 100 of them at once."""
    for each in actor.modules():
        if isinstance(each, VocabularyHead):
            each.chunk = 100
    return actor


def scalar_model(
    tokenizer_at: Path,
    architecture: str = "llama",
    settings: ModelSettings = FP32,
    *,
    shaken: bool = True,
    **changed: Any,
) -> PreTrainedModel:
    """A model with a score head."""
    words = tokenizer_of(tokenizer_at)
    model = load_reward_base(
        location(tokenizer_at, architecture, **changed), words, settings, "model"
    )
    return shake(model) if shaken else model


@torch.no_grad()
def shake(model: Any, seed: int = 7, scale: float = 0.3) -> Any:
    """Make every weight matter: fresh matrices are so small that the output hardly depends on them,
    fresh biases are 0 and fresh norms 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() >= 2:
            parameter.copy_(scale * noise)
        else:
            parameter.add_(0.1 * noise)
    return model


def saved(model: PreTrainedModel, folder: Path, tokenizer_at: Path) -> Path:
    """A folder with the model and its tokenizer, as a stage leaves them."""
    words = tokenizer_of(tokenizer_at)
    save_model(model, words, folder, [words.eos_token_id])
    return folder


# Data


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    with _appearing(path) as new:
        new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def sft_rows(count: int = 16, seed: int = 1) -> list[dict[str, str]]:
    """Prompts of letters and responses of 2 to 8 of them, which can be learned: the last letter of
    the prompt, again and again."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = "".join(draw.choices("abcdefgh", k=draw.randint(2, 6)))
        rows.append({"prompt": prompt, "response": prompt[-1] * draw.randint(2, 8)})
    return rows


def preference_rows(count: int = 16, seed: int = 1) -> list[dict[str, str]]:
    """Pairs that can be learned: the chosen response is of vowels, the rejected one of others."""
    draw = random.Random(seed)
    return [
        {
            "query": "".join(draw.choices("abcdefgh", k=draw.randint(2, 6))),
            "chosen": "".join(draw.choices("aeio", k=draw.randint(2, 8))),
            "rejected": "".join(draw.choices("bcdf", k=draw.randint(2, 8))),
        }
        for _ in range(count)
    ]


def prompt_rows(count: int = 16, seed: int = 1) -> list[dict[str, str]]:
    """Prompts of different lengths."""
    return [{"prompt": row["prompt"]} for row in sft_rows(count, seed)]


ROWS = {"sft": sft_rows, "reward": preference_rows, "ppo": prompt_rows}
SPECS: dict[str, type[StageSpec]] = {"sft": SFTStage, "reward": RewardStage, "ppo": PPOStage}


# Stages


def stage_spec(stage: str, tmp_path: Path, **overrides: Any) -> StageSpec:
    """A stage that can run: its tokenizer, models and data are written below `tmp_path`.

    Four steps of four sequences in FP32 without warm-up, a checkpoint every second. `overrides` are
    fields of the stage in snake case; one that is a model or dataset replaces ours. `eval_dataset`
    may be True for held-out rows like those of training, `ptx_dataset` for rows of SFT.
    """
    words = tokenizer_folder(tmp_path / "tokenizer")
    settings: dict[str, Any] = {
        "dataset": _dataset(tmp_path, stage, "train", seed=1),
        "precision": "FP32",
        "zero_stage": 0,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "checkpoint": CheckpointPolicy(every_steps=2),
        "seed": 3,
    }
    if stage == "ppo":
        settings |= {
            "max_prompt_length": 8,
            "max_response_length": 8,
            "rollout_micro_batch_size": 4,
            "critic_learning_rate": 1e-2,
            "samples_every_steps": 2,
        }
        if "model" not in overrides:
            settings["model"] = file_source(_saved_once(tmp_path, "causal"))
        if "reward_model" not in overrides:
            settings["reward_model"] = file_source(_saved_once(tmp_path, "scalar"))
    else:
        settings |= {"max_length": 32, "model": scratch_source(words)}
    if overrides.get("eval_dataset") is True:
        overrides["eval_dataset"] = _dataset(tmp_path, stage, "eval", seed=2)
    if overrides.get("ptx_dataset") is True:
        overrides["ptx_dataset"] = _dataset(tmp_path, "sft", "ptx", seed=3)
    return SPECS[stage](**settings | overrides)


def stage_config(
    stage: str, tmp_path: Path, *, world_size: int = 1, attempt: int = 1, **spec_overrides: Any
) -> StageConfig:
    """`stage.json` of one attempt on one node; see `stage_spec`.

    Storage is `tmp_path / "storage"`, so another attempt finds this one's checkpoints.
    """
    spec = stage_spec(stage, tmp_path, **spec_overrides)
    parts: dict[str, Any] = {stage: spec}
    return StageConfig(
        job=JobReference(name="tiny", uid="12345678-aaaa"),
        stage=stage,  # type: ignore[arg-type]
        attempt=attempt,
        processes_per_node=world_size,
        storage=str(tmp_path / "storage"),
        **parts,
    ).with_digest()


def file_source(folder: Path, **settings: Any) -> ModelSource:
    """A model in a folder, as a job names it."""
    return ModelSource(uri=f"file://{folder}", **settings)


def _dataset(tmp_path: Path, stage: str, part: str, seed: int) -> Dataset:
    path = tmp_path / "data" / f"{stage}-{part}.jsonl"
    if not path.exists():
        write_rows(path, ROWS[stage](seed=seed))
    return Dataset(uri=f"file://{path}")


def _saved_once(tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / "models" / kind
    if not folder.exists():
        words = tokenizer_folder(tmp_path / "tokenizer")
        model = causal_model(words) if kind == "causal" else scalar_model(words)
        with _appearing(folder) as new:
            saved(model, new, words)
    return folder


# Ranks


ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


def ranks() -> Ranks:
    """A world of one in this process, with the process group that DeepSpeed asks for."""
    if not dist.is_initialized():
        # DeepSpeed reads the node's rank from the environment, whatever the group says.
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)
    return ALONE
