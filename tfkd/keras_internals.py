"""Every private symbol of tf_keras, TensorFlow and tfmot that tfkd uses, in one table.

If a new version moves a symbol, only its line here changes. A module is imported when
one of its symbols is first used, so that `import tfkd.runtime` does not load Keras:

    >>> from tfkd.keras_internals import TFOpLambda
    >>> TFOpLambda.__name__
    'TFOpLambda'
"""

from __future__ import annotations

import importlib
from typing import Any

# Symbol -> the module that holds it; a module maps to the package that holds it.
SYMBOLS = {
    # A layer of tf.keras.applications that Keras does not export.
    "CustomScaleLayer": "tf_keras.src.applications.inception_resnet_v2",
    "LayerScale": "tf_keras.src.applications.convnext",
    "StochasticDepth": "tf_keras.src.applications.convnext",
    # Layers that Keras creates for TensorFlow operations, add_loss and add_metric.
    "AddLoss": "tf_keras.src.engine.base_layer",
    "AddMetric": "tf_keras.src.engine.base_layer",
    "SlicingOpLambda": "tf_keras.src.layers.core.tf_op_layer",
    "TFOpLambda": "tf_keras.src.layers.core.tf_op_layer",
    # Base classes that isinstance needs.
    "BatchNormalizationBase": "tf_keras.src.layers.normalization.batch_normalization",
    "Functional": "tf_keras.src.engine.functional",
    "KerasTensor": "tf_keras.src.engine.keras_tensor",
    "RevivedLayer": "tf_keras.src.saving.legacy.saved_model.load",
    # Functions of Keras's engine and of its saving.
    "LossesContainer": "tf_keras.src.engine.compile_utils",
    "SafeModeScope": "tf_keras.src.saving.serialization_lib",
    "_should_skip_first_node": "tf_keras.src.engine.functional",
    "count_params": "tf_keras.src.utils.layer_utils",
    "is_in_keras_graph": "tf_keras.src.engine.base_layer_utils",
    "squeeze_batch_dims": "tf_keras.src.utils.conv_utils",
    # tfmot's wrappers.
    "quantize_layer": "tensorflow_model_optimization.python.core.quantization.keras",
    "quantize_wrapper": "tensorflow_model_optimization.python.core.quantization.keras",
    # TensorFlow's graphs, converter and build.
    "Calibrator": "tensorflow.lite.python.optimize.calibrator",
    "ExternalStatePolicy": "tensorflow.python.data.ops.options",
    "Interpreter": "tensorflow.lite.python.interpreter",
    "_pywrap_util_port": "tensorflow.python.util",
    "convert_variables_to_constants_v2": "tensorflow.python.framework.convert_to_constants",
    "schema_py_generated": "tensorflow.lite.python",
}


def __getattr__(name: str) -> Any:
    if name not in SYMBOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(SYMBOLS[name])
    try:
        value = getattr(module, name)
    except AttributeError:
        # A submodule that its package does not import.
        value = importlib.import_module(f"{SYMBOLS[name]}.{name}")
    globals()[name] = value
    return value
