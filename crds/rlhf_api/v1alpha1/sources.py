"""Where models and datasets come from: URIs, typed scratch models, another stage's artifact."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract, Rule
from rlhf_api.names import StageName

S3_REFUSAL = (
    "s3:// is not supported yet; use hf://, file:// or pvc://claim/path, "
    "for example by copying the bucket into a PersistentVolumeClaim"
)

URI = Annotated[
    str,
    StringConstraints(
        max_length=1024,
        pattern=r"^((hf|file|s3)://.+|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?|scratch://[a-z0-9_]+)$",
    ),
]
"""`hf://org/name[@revision]`, `file://path`, `pvc://claim/path` or `scratch://architecture`."""

HUB_REPOSITORY = "^hf://([A-Za-z0-9_.-]+/)?[A-Za-z0-9_.-]+(@[^@ ]+)?/?$"
HUB_PAGES = "^hf://(datasets|models|spaces)/"
"""What begins the addresses of the hub's pages, before a repository's name."""

CLAIM = "pvc://"

Token = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=256)]

ScratchArchitecture = Literal["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"]
SCRATCH_ARCHITECTURES: tuple[ScratchArchitecture, ...] = (
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "opt",
)


def _not_s3(uri: str | None) -> bool:
    return uri is None or not uri.startswith("s3://")


def _names_repository(uri: str | None) -> bool:
    if uri is None or not uri.startswith("hf://"):
        return True
    return bool(re.fullmatch(HUB_REPOSITORY, uri)) and not re.match(HUB_PAGES, uri)


def _hub_rule(field: str) -> Rule:
    """A URI of the hub names a repository, and no page of it."""
    uri = f"self.{field}"
    return Rule(
        cel=f"!has({uri}) || !{uri}.startsWith('hf://') || "
        f"({uri}.matches('{HUB_REPOSITORY}') && !{uri}.matches('{HUB_PAGES}'))",
        message=f"{field} hf:// must be hf://org/name or hf://org/name@revision; write what stands "
        "behind tree/ as @revision, and leave out datasets/ and the files of the repository",
        holds=lambda m: _names_repository(getattr(m, field)),
    )


class ScratchModel(Contract):
    """Sizes of a model that starts from random weights; the URI's host names its architecture."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.hiddenSize % self.heads == 0",
            message="hiddenSize must be a multiple of heads; change one of them",
            holds=lambda m: m.hidden_size % m.heads == 0,
            explain=lambda m: (
                f"hiddenSize {m.hidden_size} is no multiple of heads {m.heads}; change one of them"
            ),
        ),
        Rule(
            cel="!has(self.keyValueHeads) || self.heads % self.keyValueHeads == 0",
            message="heads must be a multiple of keyValueHeads; change one of them",
            holds=lambda m: m.key_value_heads is None or m.heads % m.key_value_heads == 0,
            explain=lambda m: (
                f"heads {m.heads} is no multiple of keyValueHeads {m.key_value_heads}; "
                "change one of them"
            ),
        ),
        _hub_rule("tokenizer"),
    )

    layers: int = Field(ge=1, le=256)
    """Number of transformer blocks."""
    hidden_size: int = Field(ge=8, le=65536)
    """Width of the residual stream."""
    heads: int = Field(ge=1, le=512)
    """Number of attention heads; divides hiddenSize."""
    key_value_heads: int | None = Field(None, ge=1, le=512)
    """Number of key and value heads for grouped-query attention where the architecture has it;
    as many as heads when left out."""
    intermediate_size: int | None = Field(None, ge=8, le=262144)
    """Width of the feed-forward layer; four times hiddenSize when left out."""
    max_positions: int = Field(1024, ge=8, le=1048576)
    """Longest sequence in tokens that the model can take."""
    tie_embeddings: bool = True
    """Whether input and output embeddings share their weights."""
    tokenizer: URI
    """URI of the folder that holds the tokenizer, whose vocabulary sizes the embeddings."""


class ModelSource(Contract):
    """A model: a URI, or what another stage of this job makes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.uri) != has(self.fromStage)",
            message="exactly one of uri and fromStage must be set",
            holds=lambda m: (m.uri is None) != (m.from_stage is None),
        ),
        Rule(
            cel="!has(self.uri) || !self.uri.startsWith('s3://')",
            message=S3_REFUSAL,
            holds=lambda m: _not_s3(m.uri),
        ),
        Rule(
            cel="(has(self.uri) && self.uri.startsWith('scratch://')) == has(self.scratch)",
            message="scratch must be set if and only if uri starts with scratch://",
            holds=lambda m: (m.uri or "").startswith("scratch://") == (m.scratch is not None),
        ),
        Rule(
            cel="!has(self.uri) || !self.uri.startsWith('scratch://') || self.uri in ["
            + ", ".join(f"'scratch://{name}'" for name in SCRATCH_ARCHITECTURES)
            + "]",
            message="uri scratch:// must name one of the architectures "
            + ", ".join(SCRATCH_ARCHITECTURES)
            + ", for example scratch://llama",
            holds=lambda m: (
                not (m.uri or "").startswith("scratch://")
                or m.uri.removeprefix("scratch://") in SCRATCH_ARCHITECTURES
            ),
        ),
        Rule(
            cel="!has(self.chatTemplate) || !has(self.useChatTemplate) || self.useChatTemplate",
            message="chatTemplate is not used with useChatTemplate: false; remove one of them",
            holds=lambda m: m.chat_template is None or m.use_chat_template,
        ),
        _hub_rule("uri"),
    )

    uri: URI | None = None
    """Where the model and its tokenizer lie: hf://org/name[@revision], file://folder (relative to
    the job file), pvc://claim/folder, or scratch://architecture together with scratch."""
    from_stage: StageName | None = None
    """The stage of this job whose artifact is the model; this stage then waits for that one."""
    scratch: ScratchModel | None = None
    """Sizes of a model with random weights, for uri scratch://architecture."""
    pad_token: Token | None = None
    """Token of the vocabulary that pads a batch in place of the tokenizer's own and ends no answer;
    no row may hold it unless it is an added token; when left out the tokenizer's own, or, if that
    is EOS or endOfTurn, a reserved one or one that no text has."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=16384)] | None = None
    """Jinja chat template that replaces the tokenizer's own."""
    use_chat_template: bool = True
    """Whether prompts are rendered by a chat template; without one they are read as they stand, as
    a base model needs it whose tokenizer ships a template."""
    end_of_turn: Token | None = None
    """Token of the vocabulary that ends every answer; when left out what the chat template writes
    behind an answer, or EOS; sampling stops at EOS and generation_config's list as well."""


class Columns(Contract):
    """Names of the columns in the data, where they differ from the field's own name."""

    prompt: ColumnName | None = None
    """Column of the prompt; prompt or query when left out."""
    response: ColumnName | None = None
    """Column of the response of an SFT row; response when left out."""
    messages: ColumnName | None = None
    """Column of the list of messages with role and content; messages when left out."""
    chosen: ColumnName | None = None
    """Column of the preferred response; chosen when left out."""
    rejected: ColumnName | None = None
    """Column of the other response; rejected when left out."""
    positive_passages: ColumnName | None = None
    """Column of the MIRACL row's relevant passages; positive_passages when left out."""
    negative_passages: ColumnName | None = None
    """Column of the MIRACL row's other passages; negative_passages when left out."""
    margin: ColumnName | None = None
    """Column of a preference row's margin, a number; no margin when left out, and a column named
    margin is then refused."""


class Dataset(Contract):
    """Rows for one stage."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!self.uri.startsWith('s3://')",
            message=S3_REFUSAL,
            holds=lambda m: _not_s3(m.uri),
        ),
        Rule(
            cel="!self.uri.startsWith('scratch://')",
            message="uri scratch:// is for models; name a dataset by hf://, file:// or pvc://",
            holds=lambda m: not m.uri.startswith("scratch://"),
        ),
        _hub_rule("uri"),
    )

    uri: URI
    """Where the rows lie: a .jsonl, .json or .parquet file, or a folder of them and of nothing else
    that could be rows (other formats, subfolders that name no split), by file:// or
    pvc://claim/path, or a dataset of the Hugging Face hub by hf://org/name[@revision]."""
    subset: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """Configuration name of a hub dataset, which files have none of; its default one when left
    out."""
    split: Annotated[str, StringConstraints(min_length=1, max_length=256)] = "train"
    """Split of a hub dataset, of a saved dataset or of a folder whose files or subfolders name it,
    such as train.jsonl and test.jsonl; a single file has only one."""
    columns: Columns = Columns()
    """Names of the columns, where they differ from the usual ones; a row whose usual columns say
    two things, as prompt and messages may, is refused unless they name the one to read."""
    max_rows: int | None = Field(None, ge=1, le=1_000_000_000)
    """Use at most this many rows, counted from the first; all when left out."""
    over_long: Literal["Drop", "Truncate"] = "Drop"
    """What happens to a row longer than the stage's token limits: it is left out, or a response is
    cut at its end and a prompt at its beginning; both are counted."""
    allow_loss: bool = False
    """Whether to go on where more than half of the rows, or pairs, are left out as too long or with
    identical responses, and not to fail; MIRACL rows without passages do not count."""
    title_prefix: bool = False
    """Whether a MIRACL passage's title is put before its text, followed by a line break."""
    pairs_per_query: int = Field(1, ge=1, le=1000)
    """How many pairs are sampled from each MIRACL row, at most one for each two passages."""


def claim_of(uri: str) -> str | None:
    """Claim that a pvc:// URI names; None for another one."""
    return uri.removeprefix(CLAIM).partition("/")[0] if uri.startswith(CLAIM) else None
