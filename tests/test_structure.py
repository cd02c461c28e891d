"""The order of the modules, read from their imports; and what may be imported where."""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfkd"

# From the top down. A module imports from modules in rows above its own, and
# from those in its own row if that makes no circle.
ORDER = (
    ("types",),
    ("specs",),
    ("checks",),
    ("keras_internals",),
    ("networks",),
    ("example_inputs",),
    ("replicas",),
    ("known_faults",),
    ("artifacts",),
    ("results",),
    ("fingerprints",),
    ("schedules",),
    ("detection",),
    ("models",),
    ("data",),
    ("losses",),
    ("teachers",),
    ("teacher_cache",),
    ("summaries",),
    ("curriculum",),
    ("distillation",),
    ("costs",),
    ("pruning",),
    ("quantization",),
    ("formats",),
    ("export",),
    ("runtime",),
    ("callbacks",),
    ("progressive",),
    ("interop",),
    ("report",),
    ("recipes",),
    ("cli",),
    ("__main__",),
)
ROW = {name: row for row, names in enumerate(ORDER) for name in names}

# Imported inside functions only, so that `import tfkd.<anything>` works without them.
OPTIONAL = {
    "PIL",
    "ai_edge_litert",
    "keras_cv",
    "matplotlib",
    "mlflow",
    "onnx",
    "onnxruntime",
    "pycocotools",
    "rich",
    "sklearn",
    "tensorrt",
    "tf2onnx",
    "wandb",
}
# A folder that is about nothing else than the package may import it at its top.
HOLDERS: dict[str, set[str]] = {}

# These handle Keras 3 models on purpose.
KERAS_3 = {"tfkd/teachers/forward.py", "tfkd/interop/converting.py"}
# This one finds out which Keras `tf.keras` is.
TF_KERAS_ATTRIBUTE = {"tfkd/__init__.py"}

FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(f for folder in ("examples", "benchmarks") for f in (ROOT / folder).rglob("*.py"))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True, scope="module")
def no_collection():
    """Millions of nodes, beside the objects of all tests before, would be searched for circles."""
    gc.disable()
    yield
    gc.enable()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in FILES}


def imported(node: ast.AST) -> list[str]:
    """Dotted names that one import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(path: Path) -> list[str]:
    return [name for node in nodes(path) for name in imported(node)]


def resolve(name: str) -> str | None:
    """The tfkd module that holds `name`: `tfkd.checks.positive` → `tfkd.checks`."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def uses(path: Path) -> set[str]:
    """The tfkd modules that a file imports, or reaches as `tfkd.name`."""
    names = imports(path)
    names += [
        f"tfkd.{node.attr}"
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "tfkd"
    ]
    found = {resolve(name) for name in names if name.split(".")[0] == "tfkd"}
    return {name for name in found if name} - {dotted(path)}


def at_top(path: Path) -> list[str]:
    """Names imported when the module is: not in functions or `if TYPE_CHECKING`."""
    found, todo = [], list(tree(path).body)
    while todo:
        node = todo.pop()
        found += imported(node)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not typing_only and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += list(ast.iter_child_nodes(node))
    return found


def test_every_module_has_its_place_in_the_order():
    top = {name.split(".")[1] for name in MODULES if "." in name}
    assert top <= set(ROW), f"add to ORDER: {sorted(top - set(ROW))}"


def test_modules_import_only_what_stands_above_them():
    below = []
    for path in FILES:
        own = dotted(path).split(".")[1:2]
        if not own:
            continue  # tfkd/__init__.py loads names when they are asked for.
        for name in sorted(uses(path) - {"tfkd"}):
            if ROW[name.split(".")[1]] > ROW[own[0]]:
                below.append(f"{label(path)} imports {name}, which stands below it")
    assert not below, "\n".join(below)


def test_imports_make_no_circle():
    # Importing from a package runs its __init__, but its own files are written
    # for that; what must not be is a file that needs itself.
    graph = {name: {n for n in uses(path) if n != "tfkd"} for name, path in MODULES.items()}
    graph.pop("tfkd")
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_optional_packages_are_imported_inside_functions():
    at_tops = []
    for path in FILES:
        own = [*dotted(path).split("."), ""][1]
        top = {name.split(".")[0] for name in at_top(path)} & OPTIONAL
        at_tops += [f"{label(path)}: {name}" for name in top if own not in HOLDERS.get(name, ())]
    assert not at_tops, "imported at the top: " + ", ".join(sorted(at_tops))


def test_base_modules_import_neither_keras_nor_tensorflow_at_the_top():
    wrong = []
    for path in FILES:
        if dotted(path).split(".")[1:2] in (["checks"], ["artifacts"], ["schedules"]):
            names = {n.split(".")[0] for n in imports(path)} & {"keras", "tf_keras"}
            names |= {n.split(".")[0] for n in at_top(path)} & {"tensorflow"}
            wrong += [f"{label(path)}: {name}" for name in sorted(names)]
    assert not wrong, ", ".join(wrong)


def wrong_kerases(path: Path) -> list[str]:
    """What a file uses of a Keras that is not tf_keras."""
    names = imports(path)
    found = [n for n in names if n.startswith("tensorflow.keras")]
    if label(path) not in KERAS_3 and not label(path).startswith("benchmarks/"):
        found += [n for n in names if n.split(".")[0] == "keras"]
    if label(path) not in TF_KERAS_ATTRIBUTE:
        found += [
            f"tf.keras in line {node.lineno}"
            for node in nodes(path)
            if isinstance(node, ast.Attribute)
            and node.attr == "keras"
            and isinstance(node.value, ast.Name)
            and node.value.id in ("tf", "tensorflow")
        ]
    return found


def test_keras_is_always_tf_keras():
    wrong = [f"{label(path)}: {what}" for path in FILES + SCRIPTS for what in wrong_kerases(path)]
    assert not wrong, "bare keras is Keras 3, and so may tf.keras be:\n" + "\n".join(wrong)


def test_imports_are_absolute():
    relative = [
        f"{label(path)}, line {node.lineno}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, ", ".join(relative)


def test_functions_fit_on_a_screen():
    """At most 60 lines, not counting the docstring."""
    long = []
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = node.body[0] if ast.get_docstring(node) else None
                length = node.end_lineno - node.lineno + 1
                length -= doc.end_lineno - doc.lineno + 1 if doc else 0
                if length > 60:
                    long.append(f"{label(path)}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


PRIVATE = (
    "tf_keras.src",
    "tensorflow.python",
    "tensorflow.lite.python",
    "tensorflow_model_optimization.python",
)


def test_private_modules_are_named_in_keras_internals_alone():
    found = [
        f"{label(path)} imports {name}"
        for path in FILES
        for name in imports(path)
        if name.startswith(PRIVATE)
    ]
    assert not found, "\n".join(["Add them to tfkd/keras_internals.py:", *found])


# What Keras says nowhere but in private attributes, and one file or two alone need.
KERAS_ATTRIBUTES = {
    # The arguments and projections of MultiHeadAttention.
    "tfkd/interop/attention.py": {"_attention_axes", "_keras_mask"},
    "tfkd/pruning/rules/attention.py": {
        "_attention_axes",
        "_key_dim",
        "_num_heads",
        "_use_bias",
        "_value_dim",
    },
    "tfkd/quantization/flattening/attention.py": {
        "_activity_regularizer",
        "_attention_axes",
        "_bias_constraint",
        "_bias_regularizer",
        "_dropout",
        "_kernel_constraint",
        "_kernel_regularizer",
        "_key_dense",
        "_key_dim",
        "_key_shape",
        "_num_heads",
        "_output_dense",
        "_query_dense",
        "_query_shape",
        "_softmax_robust_masking",
        "_use_bias",
        "_value_dense",
        "_value_dim",
        "_value_shape",
    },
    # The mask that rides on a tensor.
    "tfkd/distillation/terms.py": {"_keras_mask"},
    "tfkd/interop/operations.py": {"_keras_mask"},
    "tfkd/interop/walking.py": {"_keras_mask"},
    "tfkd/losses/base.py": {"_keras_mask"},
    "tfkd/teachers/forward.py": {"_keras_mask"},
    # What optimizers hold, and what `compile` was given.
    "tfkd/callbacks/describe.py": {"_decayed_lr", "_learning_rate", "_total_loss_mean"},
    "tfkd/distillation/distiller.py": {"_user_metrics", "_user_weighted_metrics"},
    "tfkd/distillation/drift.py": {"_in_multi_worker_mode"},
    "tfkd/distillation/objective.py": {"_conform_to_outputs"},
    "tfkd/distillation/output_kinds.py": {"_fn_kwargs"},
    "tfkd/distillation/pacing.py": {"_in_multi_worker_mode"},
    "tfkd/distillation/saving.py": {"_index_dict", "_var_key"},
    "tfkd/distillation/targets.py": {"_fn_kwargs"},
    "tfkd/distillation/variables.py": {
        "_conform_to_outputs",
        "_user_metrics",
        "_user_weighted_metrics",
    },
    "tfkd/progressive/carrying.py": {"_learning_rate"},
    "tfkd/pruning/optimizers.py": {
        "_compile_config",
        "_exclude_from_weight_decay",
        "_exclude_from_weight_decay_names",
        "_index_dict",
        "_loss_scale",
        "_var_key",
    },
    # What subclasses of Keras's layers, models and callbacks have of their own.
    "tfkd/callbacks/tensorboard.py": {
        "_log_write_dir",
        "_train_counter",
        "_train_writer",
        "_val_writer",
        "_writers",
    },
    "tfkd/quantization/quantized_model.py": {"_trainable"},
    "tfkd/quantization/wrappers.py": {"_trainable_weights"},
    # The generator of a random layer.
    "tfkd/report/inference.py": {"_generator"},
}


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def keras_names() -> set[str]:
    """Private attributes and methods that the source of Keras speaks of."""
    (folder,) = importlib.util.find_spec("tf_keras").submodule_search_locations
    pattern = re.compile(
        r"\b(?:self|cls|layer|tensor|model|node)\.(_[a-z]\w*)|def (_[a-z]\w*)\(self"
    )
    sources = [path.read_text(encoding="utf-8") for path in Path(folder, "src").rglob("*.py")]
    return {name for text in sources for pair in pattern.findall(text) for name in pair if name}


def defined(node: ast.AST) -> str | None:
    """The private name that a statement of tfkd gives something of its own."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.attr if isinstance(node.value, ast.Name) and node.value.id == "self" else None
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "__setattr__":
        return getattr(node.args[1], "value", None)
    return None


def attributes(node: ast.AST) -> str | None:
    """The attribute that an expression reads, also by getattr or hasattr."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
        return getattr(node.args[1], "value", None)
    return None


def test_private_attributes_of_keras_are_read_in_networks_alone():
    everything = [node for path in FILES for node in nodes(path)]
    theirs = keras_names() - {name for node in everything if (name := defined(node))}
    assert theirs >= {"_nodes_by_depth", "_inbound_nodes", "_keras_history", "_flatten_layers"}
    found = [
        f"{label(path)} reads {name}"
        for path in FILES
        if dotted(path).split(".")[1:2] not in (["networks"], ["keras_internals"])
        for name in {attributes(node) for node in nodes(path)}
        if private(name) and name in theirs - KERAS_ATTRIBUTES.get(label(path), set())
    ]
    assert not found, "\n".join(["Give tfkd/networks a function for them:", *sorted(found)])


def test_test_modules_have_names_of_their_own():
    """pytest imports them by name alone: two of one name can't be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
