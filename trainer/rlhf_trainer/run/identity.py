"""What the tokens of a dataset depend on, as one key: equal keys, equal tokens.

Called by `inputs`. Whatever else comes to decide about tokens has to be a setting of its loader, or
stand in the code below `data`, which is part of the key as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedTokenizerBase

import rlhf_trainer.data
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.read.rows import data_files, is_saved
from rlhf_trainer.data.read.uris import Hub, locate
from rlhf_trainer.data.tokenize.offsets import has_offsets
from rlhf_trainer.data.tokenize.rendering import reads_clock
from rlhf_trainer.data.tokenize.turns import end_of_turn
from rlhf_trainer.run.files import list_files, sha256_of

Identity = list[tuple[str, str]]
"""Names, and the digest or commit of what stands under each."""

_LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")


def identity_of(dataset: Dataset, claims: Mapping[str, str], field: str) -> Identity | None:
    """What tells a dataset's rows from all others: each file's sha256, or the hub's commit.

    Args: as `read_rows`.

    Returns:
        None where it cannot be told: the hub does not answer, or its cache holds no commit.

    Raises:
        InputError: there is nothing at the URI that can be read.
    """
    place = locate(dataset.uri, claims, f"{field}.uri")
    if isinstance(place, Hub):
        commit = commit_of(place)
        return None if commit is None else [(place.name, commit)]
    saved = place.is_dir() and is_saved(place)
    files = list_files(place) if saved else data_files(place, dataset, field)
    named = [(path, path.relative_to(place).as_posix()) for path in files]
    return [(name if path != place else path.suffix, sha256_of(path)) for path, name in named]


def commit_of(hub: Hub) -> str | None:
    """The commit that a dataset's revision stands for now; None where nobody says."""
    try:
        if not huggingface_hub.is_offline_mode():
            return huggingface_hub.HfApi().dataset_info(hub.name, revision=hub.revision).sha
        folder = huggingface_hub.snapshot_download(
            hub.name, repo_type="dataset", revision=hub.revision, local_files_only=True
        )
    # Whoever reads the rows meets the same, and says so.
    except (HfHubHTTPError, OSError, ValueError):
        return None
    return Path(folder).name


def pinned(dataset: Dataset, identity: Identity | None) -> Dataset:
    """The dataset at the commit that it was identified by; a hub's branch may move meanwhile."""
    if identity is None or not dataset.uri.startswith("hf://"):
        return dataset
    ((name, commit),) = identity
    return dataset.model_copy(update={"uri": f"hf://{name}@{commit}"})


def rows_digest(identity: Identity) -> str:
    """`sha256:<hex>` of what a dataset's rows are, whatever tokens they have."""
    return f"sha256:{_digest(json.dumps(identity))}"


def token_key(
    loader: str,
    dataset: Dataset,
    identity: Identity,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
) -> str:
    """A name of 64 characters for what `loader` makes of a dataset's rows.

    Args:
        loader: name of one of `data.loading`.
        dataset: the spec.
        identity: of its rows.
        tokenizer: as it is when nothing was asked of it yet.
        settings: what else the loader is given, as JSON values.
    """
    parts = {
        "loader": loader,
        "dataset": dataset.model_dump(mode="json", exclude={"uri"}),
        "rows": identity,
        "tokenizer": _tokenizer_parts(tokenizer),
        "settings": dict(settings),
        "code": _code_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        # Nobody finds it again; the other ranks of the node are told, and then it goes.
        "time": datetime.now(UTC).isoformat() if reads_clock(tokenizer) else None,
    }
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _tokenizer_parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that tokens are asked of; sides and lengths of padding and truncation never are."""
    # Elsewhere the class changes the text by settings of its own.
    by_backend = has_offsets(tokenizer)
    return {
        "class": type(tokenizer).__name__,
        "template": tokenizer.chat_template,
        "endOfTurn": end_of_turn(tokenizer).token_id,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        # Not all of them have a name.
        "allSpecial": [str(token) for token in tokenizer.all_special_tokens],
        # No tokenizer.json holds it.
        "splitsSpecial": bool(tokenizer.split_special_tokens),
        "model": _digest(tokenizer.backend_tokenizer.to_str())
        if by_backend
        else _saved_digest(tokenizer),
    }


def _saved_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of a tokenizer that is written in Python, all or in part, by what it saves."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _digest(repr([(path.name, sha256_of(path)) for path in list_files(Path(folder))]))


def _code_digest() -> str:
    """Of the code that makes tokens of rows: a release that mends it makes them anew."""
    folder = Path(rlhf_trainer.data.__file__).parent
    sources = [(path, path.read_bytes()) for path in sorted(folder.rglob("*.py"))]
    return _digest(repr([(str(path.relative_to(folder)), content) for path, content in sources]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
