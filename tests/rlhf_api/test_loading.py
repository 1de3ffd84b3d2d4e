"""Manifests are read as kubectl reads them, and each mistake says where, what and what to do.

What kubectl reads was taken from sigs.k8s.io/yaml 1.6, one scalar at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.errors import ConfigError
from rlhf_api.loading import dump_yaml, find_nulls, parse_yaml, read_yaml
from rlhf_api.v1alpha1 import RLHFJob


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("9.65e-6", 9.65e-6),
        ("1e6", 1_000_000),
        ("2.0", 2),
        ("1.", 1),
        ("-.5", -0.5),
        (".5e3", 500),
        ("12e03", 12_000),
        ("+1", 1),
        ("-0", 0),
        ("1_000", 1000),
        ("1_0.5", 10.5),
        ("017", 15),
        ("0o17", 15),
        ("+0o17", 15),
        ("08", 8),
        ("0x1F", 31),
        ("-0x1F", -31),
        ("0b11", 3),
        ("9223372036854775808", 9223372036854775808),
        ("yes", True),
        ("y", True),
        ("On", True),
        ("TRUE", True),
        ("no", False),
        ("N", False),
        ("off", False),
        ("tRUE", "tRUE"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("1:30", "1:30"),
        ("1e", "1e"),
        ("0.5e", "0.5e"),
        ("0o8", "0o8"),
        ("_1", "_1"),
        ("=", "="),
        ("+", "+"),
        ("~", None),
        ("'1e-6'", "1e-6"),
    ],
)
def test_scalars_as_kubectl_reads_them(text: str, value: object) -> None:
    (document,) = parse_yaml(f"a: {text}\n", "x")
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


def test_other_users_of_pyyaml_are_left_alone() -> None:
    assert yaml.safe_load("1e-6") == "1e-6"


@given(
    st.recursive(
        st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8"))
        | st.sampled_from(["1e-6", "1:30", "y", "0o17", "2024-01-01", "on", "1_0", "=", ".5", "~"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner),
        max_leaves=10,
    )
)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert parse_yaml(dump_yaml({"a": value}), "x") == [{"a": value}]


def test_merge_keys_work_and_do_not_count_as_doubles() -> None:
    (document,) = parse_yaml("x: &a {p: 1, q: 2}\nz:\n  <<: *a\n  p: 3\n", "x")
    assert document["z"] == {"p": 3, "q": 2}


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(path) == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [\n", "x: line 3: not YAML: expected the node content"),
        ("a: 1\n\tb: 2\n", "x: line 2: not YAML: found character '\\t'"),
        ("a:\n  b: 1\n  b: 2\n", "x: line 3: not YAML: key 'b' stands twice; keep one"),
        ("a: .inf\n", "x: line 1: not YAML: .inf is no finite number; write one"),
        ("a: -.inf\n", "x: line 1: not YAML: -.inf is no finite number; write one"),
        ("~: 1\n", "x: line 1: not YAML: key None is not text; put it in quotes"),
        ("? [a]\n: 1\n", "x: line 1: not YAML: key ['a'] is not text; put it in quotes"),
        ("a: !!python/name:os.system x\n", "x: line 1: not YAML: could not determine"),
        ("a: !!int 12abc\n", "x: not YAML: invalid literal"),
        ("a: \x01\n", "x: not YAML: unacceptable character"),
        ("[" * 2_000, "x: not YAML: "),
    ],
)
def test_what_is_not_yaml_names_the_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file; check the path"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(
        ConfigError, match=r": cannot be read: Is a directory; name a file that can"
    ):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not text in UTF-8 .*; save it as UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


def test_find_nulls() -> None:
    assert list(find_nulls({"a": None, "b": [{"c/d": None}], "e": 0})) == ["a", 'b[0]["c/d"]']


SFT = "spec.stages.sft"
SCRATCH = {"layers": 2, "hiddenSize": 64, "heads": 4, "tokenizer": "file://tokenizer"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param(
            {f"{SFT}.learningrate": 1e-6},
            "spec.stages.sft.learningrate: is unknown (value 1e-06); did you mean learningRate?",
            id="unknown field, near one",
        ),
        pytest.param(
            {"spec.storage": {"uri": "pvc://c", "zzz": 1}},
            "spec.storage.zzz: is unknown (value 1); remove it; known are uri",
            id="unknown field",
        ),
        pytest.param(
            {f"{SFT}.learningRate": "1e-6"},
            'spec.stages.sft.learningRate: is "1e-6"; input should be a valid number; '
            "write it without quotes",
            id="text for a number",
        ),
        pytest.param(
            {f"{SFT}.model.padToken": True},
            "spec.stages.sft.model.padToken: is true; input should be a valid string; "
            "put it in quotes",
            id="boolean for a text",
        ),
        pytest.param(
            {f"{SFT}.epochs": 1.5},
            "spec.stages.sft.epochs: is 1.5; input should be a valid integer",
            id="fraction for an integer",
        ),
        pytest.param(
            {f"{SFT}.learningRate": 2},
            "spec.stages.sft.learningRate: is 2; input should be less than or equal to 1",
            id="out of range",
        ),
        pytest.param(
            {f"{SFT}.adamBetas": [0.9]},
            "spec.stages.sft.adamBetas: is [0.9]; tuple should have at least 2 items",
            id="list too short",
        ),
        pytest.param(
            {f"{SFT}.precision": "bf16"},
            "spec.stages.sft.precision: is \"bf16\"; input should be 'BF16' or 'FP32'",
            id="no such choice",
        ),
        pytest.param(
            {f"{SFT}.dataset": {}},
            "spec.stages.sft.dataset.uri: is missing; add it: Where the rows lie",
            id="missing field",
        ),
        pytest.param(
            {f"{SFT}.dataset.uri": None},
            "spec.stages.sft.dataset.uri: is empty; give it a value or remove it",
            id="field without a value",
        ),
        pytest.param(
            {f"{SFT}.dataset.uri": "rows.jsonl"},
            'spec.stages.sft.dataset.uri: is "rows.jsonl", which names no scheme; for a path write '
            "file://rows.jsonl",
            id="no URI",
        ),
        pytest.param(
            {f"{SFT}.dataset.uri": "gs://bucket/rows"},
            'spec.stages.sft.dataset.uri: is "gs://bucket/rows", which has not the needed form: '
            "Where the rows lie",
            id="scheme that nobody knows",
        ),
        pytest.param(
            {f"{SFT}.batchSize": "many"},
            'spec.stages.sft.batchSize: is "many"; input should be a valid integer',
            id="no number",
        ),
        pytest.param(
            {f"{SFT}.dataset.uri": "s3://bucket/rows"},
            "spec.stages.sft.dataset: s3:// is not supported yet; use hf://, file:// or "
            "pvc://claim/path, for example by copying the bucket into a PersistentVolumeClaim "
            '(value {"uri": "s3://bucket/rows"})',
            id="s3 dataset",
        ),
        pytest.param(
            {f"{SFT}.model": {"uri": "s3://bucket/model"}},
            "spec.stages.sft.model: s3:// is not supported yet; use",
            id="s3 model",
        ),
        pytest.param(
            {"spec.storage": {"uri": "s3://bucket/runs"}},
            "spec.storage: s3:// is not supported yet; use",
            id="s3 storage",
        ),
        pytest.param(
            {f"{SFT}.model": {"uri": "scratch://llama"}},
            "spec.stages.sft.model: scratch must be set if and only if uri starts with scratch://",
            id="scratch without sizes",
        ),
        pytest.param(
            {f"{SFT}.model": {"uri": "scratch://bert", "scratch": SCRATCH}},
            "spec.stages.sft.model: uri scratch:// must name one of the architectures llama,",
            id="scratch of another architecture",
        ),
        pytest.param(
            {f"{SFT}.model": {"uri": "scratch://llama", "scratch": SCRATCH | {"heads": 5}}},
            "spec.stages.sft.model.scratch: hiddenSize 64 is no multiple of heads 5; "
            "change one of them",
            id="heads do not divide the width",
        ),
        pytest.param(
            {"spec.stages.reward.model": {"fromStage": "rm"}},
            "spec.stages.reward.model.fromStage: is \"rm\"; input should be 'sft', 'reward' or "
            "'ppo'",
            id="no such stage name",
        ),
        pytest.param(
            {
                "spec.stages": {
                    "ppo": {
                        "model": {"uri": "hf://a/b"},
                        "rewardModel": {"fromStage": "reward"},
                        "dataset": {"uri": "file://p.jsonl"},
                    }
                }
            },
            "spec: stages.ppo.rewardModel.fromStage: stage ppo reads stage reward, which is not "
            "there; add stages.reward, or give the model by uri",
            id="stage that is not there",
        ),
        pytest.param(
            {f"{SFT}.model": {"fromStage": "reward"}},
            "spec: stages.sft.model.fromStage: stages read each other: sft reads reward reads "
            "sft; give one of the models by uri",
            id="two stages that read each other",
        ),
        pytest.param(
            {f"{SFT}.processesPerNode": 3},
            "spec: stages.sft.batchSize: 32 is no multiple of the stage's 3 ranks (nodes 1 times "
            "processesPerNode 3); change one of them",
            id="ranks do not divide the batch",
        ),
        pytest.param(
            {"spec.stages.ppo.minibatchSize": 5},
            "spec.stages.ppo: minibatchSize 5 does not divide batchSize 32; change one of them",
            id="minibatch does not divide the batch",
        ),
        pytest.param(
            {f"{SFT}.microBatchTokens": 1023},
            "spec.stages.sft: microBatchTokens 1023 must hold a sequence of maxLength (1024 when "
            "left out), here 1024; raise it",
            id="no room for a sequence",
        ),
        pytest.param(
            {"spec.stages.ppo.maxPromptLength": 8, "spec.stages.ppo.microBatchTokens": 519},
            "spec.stages.ppo: microBatchTokens 519 must hold a sequence of maxPromptLength and "
            "maxResponseLength (512 and 512 when left out), here 520; raise it",
            id="no room for a prompt and its response",
        ),
        pytest.param(
            {"spec.template.resources": {"limits": {"cpu": 0.5}}},
            "spec.template.resources.limits.cpu: is 0.5; input should be a valid string; "
            "put it in quotes",
            id="fraction for a quantity",
        ),
        pytest.param(
            {"spec.template.resources": {"limits": {"nvidia.com/gpu": "eight"}}},
            'spec.template.resources.limits["nvidia.com/gpu"]: is "eight", which has not the '
            "needed form",
            id="no quantity",
        ),
        pytest.param(
            {"spec.template.resources": {"limits": {"": "8"}}},
            'spec.template.resources.limits[""]: the key is ""; string should have at least 1',
            id="empty key",
        ),
        pytest.param(
            {"spec.template.labels": {"a b": "c"}},
            'spec.template.labels: key "a b": every key must be letters, digits, -, _ and .',
            id="key of a label",
        ),
        pytest.param(
            {"spec.template.env": [{"name": "A"}, {"name": "A"}]},
            "spec.template.env: name A stands twice; keep one of them",
            id="variable twice",
        ),
        pytest.param(
            {"metadata.name": "a" * 41},
            f'metadata.name: is "{"a" * 41}"; string should have at most 40 characters',
            id="long name",
        ),
        pytest.param(
            {"spec.storage": [1]},
            "spec.storage: is [1]; input should be an object",
            id="list for an object",
        ),
    ],
)
def test_each_mistake_says_where_what_and_what_to_do(
    make_document: Any, tmp_path: Path, changes: Mapping[str, Any], line: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(dump_yaml(make_document(changes)))
    with pytest.raises(ConfigError) as caught:
        RLHFJob.from_file(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: {line}")


def test_every_mistake_has_a_line(make_document: Any) -> None:
    document = make_document({f"{SFT}.epochs": 0, f"{SFT}.seed": -1, f"{SFT}.x": 1})
    with pytest.raises(ConfigError) as caught:
        RLHFJob.from_document(document, "job")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        f"{SFT}.seed",
        f"{SFT}.epochs",
        f"{SFT}.x",
    ]


def test_long_values_are_cut(make_document: Any) -> None:
    document = make_document({f"{SFT}.precision": "x" * 10_000})
    with pytest.raises(ConfigError) as caught:
        RLHFJob.from_document(document, "job")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_holds_one_job(make_document: Any, tmp_path: Path, count: int) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("---\n" + yaml.safe_dump_all([make_document({})] * count) if count else "")
    with pytest.raises(ConfigError, match=rf"holds {count} documents .*; write exactly one RLHFJ"):
        RLHFJob.from_file(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "not a mapping; write an object of kind RLHFJob"),
        ("apiVersion: v1\nkind: Pod", "apiVersion and kind are 'v1' and 'Pod'; write rlhf.dev/v1"),
        ("kind: RLHFJob", "apiVersion and kind are None and 'RLHFJob'"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        RLHFJob.from_file(path)


def test_what_json_cannot_hold_is_refused(make_document: Any, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(dump_yaml(make_document({})) + "extra: !!binary aGVsbG8=\n")
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        RLHFJob.from_file(path)
    path.write_text("apiVersion: rlhf.dev/v1alpha1\nkind: RLHFJob\nspec: &a {b: *a}\n")
    with pytest.raises(ConfigError):
        RLHFJob.from_file(path)
