"""config.pbtxt: what is accepted, what is refused and by which name."""

import re

import pytest

from model_repo.config import VersionPolicy, format_config, parse_config
from model_repo.errors import ConfigError
from model_repo.scheduling import DynamicBatching, QueuePolicy

BASE = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }
output { name: "y" data_type: TYPE_STRING dims: [ 1 ] label_filename: "labels.txt" }
"""

ENSEMBLE = """
platform: "ensemble"
input { name: "IN" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "OUT" data_type: TYPE_FP32 dims: [ 2 ] }
"""


def step(model: str, source: str, target: str, version: int = -1) -> str:
    return f"""step {{ model_name: "{model}" model_version: {version}
      input_map {{ key: "x" value: "{source}" }} output_map {{ key: "y" value: "{target}" }} }}"""


def ensemble(*steps: str) -> str:
    return ENSEMBLE + "ensemble_scheduling {" + "".join(steps) + "}"


def test_a_plain_model_is_read_whole() -> None:
    config = parse_config(BASE, name="m")
    assert (config.name, config.platform, config.batch_rows_max) == ("m", "onnxruntime", 8)
    assert (config.inputs[0].datatype, config.inputs[0].dims) == ("FP32", (3, -1))
    assert (config.outputs[0].datatype, config.outputs[0].label_filename) == ("BYTES", "labels.txt")
    assert config.batching is None
    assert config.versions == VersionPolicy(latest=1)
    assert config.model_filename == "model.onnx"


@pytest.mark.parametrize(
    ("lines", "platform"),
    [
        ('platform: "onnxruntime"', "onnxruntime"),
        ('backend: "onnxruntime"', "onnxruntime"),
        ('backend: "onnxruntime" platform: "onnxruntime_onnx"', "onnxruntime"),
        ('backend: "python"', "python"),
    ],
)
def test_platform_and_backend_both_name_the_runtime(lines: str, platform: str) -> None:
    assert parse_config(BASE.replace('platform: "onnxruntime_onnx"', lines), name="m").platform == platform


def test_batching_queue_instances_and_parameters() -> None:
    config = parse_config(
        BASE
        + """
        dynamic_batching { preferred_batch_size: [ 8, 4, 4 ] max_queue_delay_microseconds: 250
          default_queue_policy { max_queue_size: 9 default_timeout_microseconds: 7 allow_timeout_override: true } }
        instance_group [ { kind: KIND_CPU count: 2 }, { count: 1 } ]
        parameters { key: "a" value { string_value: "b" } }
        default_model_filename: "other.onnx"
        """,
        name="m",
    )
    assert config.batching == DynamicBatching(preferred_rows=(4, 8), delay_ns_max=250_000)
    assert config.queue == QueuePolicy(requests_max=9, timeout_ns=7_000, is_timeout_overridable=True)
    assert config.instances == 3
    assert config.parameters == {"a": "b"}
    assert config.model_filename == "other.onnx"


def test_a_default_timeout_cannot_be_overridden_unless_allowed() -> None:
    text = BASE + "dynamic_batching { default_queue_policy { default_timeout_microseconds: 7 } }"
    assert not parse_config(text, name="m").queue.is_timeout_overridable


def test_text_and_message_are_two_forms_of_one_configuration() -> None:
    config = parse_config(BASE + "dynamic_batching { } version_policy { specific { versions: [ 2, 5 ] } }", name="m")
    assert parse_config(format_config(config), name="m") == config


@pytest.mark.parametrize(
    ("policy", "on_disk", "served"),
    [
        ("", [1, 2, 10], (10,)),
        ("version_policy { latest { num_versions: 2 } }", [1, 2, 10], (2, 10)),
        ("version_policy { latest { } }", [1, 2], (2,)),
        ("version_policy { all { } }", [2, 1], (1, 2)),
        ("version_policy { specific { versions: [ 2, 1 ] } }", [1, 2, 3], (1, 2)),
    ],
)
def test_version_policy(policy: str, on_disk: list[int], served: tuple[int, ...]) -> None:
    assert parse_config(BASE + policy, name="m").versions.choose(on_disk) == served


def test_a_specific_version_that_is_missing_is_named() -> None:
    config = parse_config(BASE + "version_policy { specific { versions: [ 4 ] } }", name="m")
    with pytest.raises(ConfigError, match="version 4"):
        config.versions.choose([1])


def test_warmup_samples() -> None:
    config = parse_config(
        BASE
        + """model_warmup { name: "w" batch_size: 2 count: 3
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3, 5 ] random_data: true } } }""",
        name="m",
    )
    (warmup,) = config.warmups
    assert (warmup.batch_rows, warmup.runs, warmup.inputs[0].dims) == (2, 3, (3, 5))
    assert warmup.inputs[0].source == "random"


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("sequence_batching { iterative_sequence: true }", "sequence_batching.iterative_sequence"),
        ("sequence_batching { direct { minimum_slot_utilization: 1 } }", "sequence_batching.direct.minimum_slot_.*"),
        ("optimization { graph { level: 1 } }", "optimization"),
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
        ("instance_group { gpus: [ 0 ] kind: KIND_CPU }", "instance_group.gpus"),
        ("instance_group { kind: KIND_CPU host_policy: 'a' }", "instance_group.host_policy"),
        ("metric_tags { key: 'a' value: 'b' }", "metric_tags"),
        ("cc_model_filenames { key: '8.0' value: 'b' }", "cc_model_filenames"),
        ("runtime: 'x'", "runtime"),
        ("input { name: 'z' data_type: TYPE_FP32 dims: 1 format: FORMAT_NCHW }", "input.format"),
        ("input { name: 'z' data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }", "input 'z': allow_ragged_batch"),
        ("input { name: 'z' data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }", "input.is_shape_tensor"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(setting: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: has no effect"):
        parse_config(BASE + setting, name="m")


def test_only_a_python_model_can_be_decoupled() -> None:
    setting = "model_transaction_policy { decoupled: true }"
    with pytest.raises(ConfigError, match="only a Python model can send many responses"):
        parse_config(BASE + setting, name="m")
    python = re.sub(r'platform: "[a-z_]+"', 'backend: "python"', BASE)
    assert parse_config(python + setting, name="m").is_decoupled
    assert not parse_config(python, name="m").is_decoupled


@pytest.mark.parametrize(
    "setting",
    ["response_cache { enable: false }", "model_transaction_policy { }", "optimization { }"],
)
def test_a_default_written_out_is_harmless(setting: str) -> None:
    assert parse_config(BASE + setting, name="m").name == "m"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("what is this", "not a model configuration"),
        (BASE.replace("TYPE_FP32", "32"), "32 is no data type"),
        (BASE.replace("TYPE_FP32", "3" * 70), "not a model configuration"),
        (BASE + "instance_group { kind: 99 }", "99 is not served"),
        (BASE + "unknown_field: 1", "unknown_field"),
        (BASE + 'name: "other"', "differs from the model's folder"),
        (BASE.replace('"onnxruntime_onnx"', '"pytorch_libtorch"'), "'pytorch_libtorch' is not served"),
        (BASE.replace('platform: "onnxruntime_onnx"', ""), "platform: missing"),
        (BASE + 'backend: "python"', "contradict"),
        (BASE.replace("max_batch_size: 8", "max_batch_size: -1"), "max_batch_size"),
        (BASE.replace("[ 3, -1 ]", "[ 0 ]"), "input 'x': dims: 0"),
        (BASE.replace("[ 3, -1 ]", "[ -2 ]"), "input 'x': dims: -2"),
        (BASE.replace("dims: [ 3, -1 ]", ""), "dims are missing"),
        (BASE.replace("data_type: TYPE_FP32", ""), "data_type is missing"),
        (BASE + 'input { name: "x" data_type: TYPE_FP32 dims: 1 }', "same name"),
        (BASE + "input { data_type: TYPE_FP32 dims: 1 }", "no name"),
        (BASE.replace("labels.txt", "../labels.txt"), "plain file name"),
        (BASE + 'default_model_filename: "../../x"', "plain file name"),
        (BASE + "dynamic_batching { preferred_batch_size: 9 }", "preferred_batch_size"),
        (BASE.replace("max_batch_size: 8", "") + "dynamic_batching { }", "needs max_batch_size"),
        (BASE + "dynamic_batching { priority_levels: 2 }", "default_priority_level: 0 is outside 1..2"),
        (BASE + "dynamic_batching { priority_levels: 2 default_priority_level: 3 }", "3 is outside 1..2"),
        (BASE + "dynamic_batching { priority_levels: 65 default_priority_level: 1 }", "65 is outside 0..64"),
        (BASE + "dynamic_batching { default_priority_level: 1 }", "1 is outside 0..0"),
        (BASE + "dynamic_batching { priority_queue_policy { key: 1 value { } } }", "1 is outside 1..0"),
        (BASE + "instance_group { kind: KIND_GPU }", "KIND_GPU is not served"),
        (BASE + "instance_group { count: 1000 }", "instance_group.count"),
        (BASE + "version_policy { specific { } }", "version_policy.specific"),
        (BASE + "ensemble_scheduling { }", "only for platform 'ensemble'"),
        (BASE.replace("dims: [ 3, -1 ]", "dims: [ 6 ] reshape { shape: [ 2, 2 ] }"), "reshape"),
        (BASE.replace("dims: [ 3, -1 ]", "dims: [ -1 ] reshape { shape: [ 2 ] }"), "reshape"),
        (BASE + 'model_warmup { name: "w" }', "input 'x' is missing"),
        (
            BASE + 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3, 5 ] } } }',
            "needs zero_data",
        ),
        (
            BASE
            + 'model_warmup { name: "w" inputs { key: "q" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }',
            "'q' of type FP32 is not an input",
        ),
    ],
)
def test_contradictions_are_named(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(text, name="m")


def test_a_name_that_is_no_folder_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="must match"):
        parse_config(BASE, name="../m")


def test_ensemble_steps_are_read() -> None:
    config = parse_config(ensemble(step("a", "IN", "mid"), step("b", "mid", "OUT", version=3)), name="e")
    assert [(own.model, own.version) for own in config.steps] == [("a", -1), ("b", 3)]
    assert config.steps[0].inputs == {"x": "IN"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENSEMBLE, "at least one step"),
        (ensemble(step("a", "IN", "mid")), "output 'OUT' is made by no step"),
        (ensemble(step("a", "nothing", "OUT")), "reads 'nothing', which nothing makes"),
        (ensemble(step("a", "IN", "OUT"), step("b", "IN", "OUT")), "'OUT' is made twice"),
        (ensemble(step("a", "mid", "OUT"), step("b", "OUT", "mid")), "input 'IN' is read by no step"),
        (
            ensemble(
                step("a", "mid", "OUT"), step("b", "other", "mid"), step("c", "mid", "other"), step("d", "IN", "q")
            ),
            "waits for its own result",
        ),
        (ensemble(step("a", "IN", "OUT")) + "dynamic_batching { }", "specified along with field"),
        (ensemble(step("a", "IN", "OUT")) + "instance_group { }", "an ensemble has none"),
        (ensemble(step("", "IN", "OUT")), "no model_name"),
        (ENSEMBLE + 'ensemble_scheduling { step { model_name: "a" } }', "needs input_map and output_map"),
        (
            ensemble(step("a", "IN", "OUT")).replace("dims: [ 2 ]", "dims: [ 2 ] optional: true", 1),
            "optional and reshape",
        ),
    ],
)
def test_an_ensemble_that_cannot_flow_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(text, name="e")


def test_priorities_and_their_policies_are_read() -> None:
    text = (
        BASE
        + """dynamic_batching { priority_levels: 3 default_priority_level: 2
      default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 }
      priority_queue_policy { key: 1 value { max_queue_size: 4 allow_timeout_override: true } } }"""
    )
    config = parse_config(text, name="m")
    assert config.batching == DynamicBatching(
        priority_levels=3, default_level=2, level_policies={1: QueuePolicy(requests_max=4)}
    )
    assert config.queue == QueuePolicy(timeout_ns=5000, is_timeout_overridable=False, is_delaying=True)
