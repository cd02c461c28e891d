"""Stages that change the structure: pruned, cut, quantized, decayed, all in one `fit`."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
import toys
from toys import CROSSENTROPY

import tfkd
from tfkd import progressive
from tfkd.curriculum import Stage

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8, 8, 1)).astype(np.float32)
Y = (X.mean((1, 2, 3)) > 0).astype(np.int32)


def net(seed, widths=(8,)):
    return toys.randomize(
        tfkd.models.resnet(8, 2, (8, 8, 1), widths=widths, weight_decay=0), seed, scale=0.3
    )


def plain(seed, width=16):
    """Convolution, normalization, ReLU, pooling, scores: quick to prune and to quantize."""
    x = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(width, 3, padding="same", name="conv")(x)
    h = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(h))
    h = keras.layers.GlobalAveragePooling2D(name="pool")(h)
    return toys.randomize(keras.Model(x, keras.layers.Dense(2, name="scores")(h)), seed)


def make(stages, student=None, losses=None, optimizer="adam", teacher=None):
    losses = losses or tfkd.losses.LogitsDistillation(2.0)
    distiller = tfkd.ProgressiveDistiller(teacher or plain(1), student or plain(2), stages, losses)
    distiller.compile(optimizer, CROSSENTROPY, ["accuracy"])
    return distiller


def fit(distiller, **kwargs):
    return distiller.fit(X, Y, batch_size=8, verbose=0, **kwargs).history


def test_pruning_between_stages_and_training_goes_on():
    distiller = make([Stage(1), Stage(2, structure=progressive.Prune(filter_rate=0.5))])
    history = fit(distiller)
    assert distiller.student.get_layer("conv").filters == 8
    assert history["stage"] == [0, 1, 1] and np.isfinite(history["loss"]).all()
    assert int(distiller.distiller.optimizer.iterations) == 12


def test_the_optimizer_keeps_the_state_of_what_stays():
    """Momenta of the filters that stay are those of the filters before the cut."""
    distiller = make([Stage(1), Stage(1, structure=progressive.Prune(filter_rate=0.5))])
    kept = {}

    class Look(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            if "before" not in kept:
                kept["before"] = slots(self.model)

        def on_train_begin(self, logs=None):
            if "before" in kept:
                kept["after"] = slots(self.model)

    def slots(model):
        conv = model.student.get_layer("conv").kernel
        found = tfkd.pruning.optimizers.slots_of(model.optimizer, conv)
        return [slot.numpy() for slot in found], model.student.get_layer("conv").kernel.numpy()

    fit(distiller, callbacks=[Look()])
    (old_slots, old_kernel), (new_slots, new_kernel) = kept["before"], kept["after"]
    places = [
        next(i for i in range(16) if np.array_equal(old_kernel[..., i], new_kernel[..., j]))
        for j in range(8)
    ]
    assert len(old_slots) == len(new_slots) == 2  # of Adam
    for old, new in zip(old_slots, new_slots, strict=True):
        np.testing.assert_array_equal(new, old[..., places])


def test_filters_decay_during_a_stage_and_are_cut_out_at_its_end():
    decay = progressive.Decay({"filter_rate": 0.5}, end=0.75)
    distiller = make([Stage(4, "decay", decay=decay), Stage(1, "after")])
    widths = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            widths.append(self.model.student.get_layer("conv").filters)

    history = fit(distiller, callbacks=[Look()])
    assert widths == [16, 8]
    np.testing.assert_allclose(history["decay_rate"][:4], [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    assert np.isnan(history["decay_rate"][4])


def test_a_stage_is_not_promoted_while_filters_decay():
    decay = progressive.Decay({"filter_rate": 0.5}, end=0.5)
    distiller = make([Stage(6, decay=decay, promote=lambda logs: True)])
    assert len(fit(distiller)["loss"]) == 3
    assert distiller.student.get_layer("conv").filters == 8


def test_a_decay_that_is_stopped_cuts_nothing():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    distiller = make([Stage(4, decay=progressive.Decay({"filter_rate": 0.5}))])
    with pytest.warns(UserWarning, match="stopped before its filters had decayed"):
        fit(distiller, callbacks=[Stop()])
    assert distiller.student.get_layer("conv").filters == 16


def test_layers_are_cut_and_the_rest_keeps_its_weights():
    student = toys.randomize(
        tfkd.models.resnet(14, 2, (8, 8, 1), widths=(4,), weight_decay=0), 3, scale=0.3
    )
    before = student.get_layer("stage1_block1_1_conv").get_weights()
    stage = Stage(1, structure=progressive.CutLayers(drop="stage1_block2"))
    distiller = make([stage], student, optimizer=keras.optimizers.SGD(0.0))
    fit(distiller)
    assert has(student, "stage1_block2_1_conv")
    assert not has(distiller.student, "stage1_block2_1_conv")
    after = distiller.student.get_layer("stage1_block1_1_conv").get_weights()
    np.testing.assert_array_equal(before[0], after[0])


def has(model, name):
    return name in [layer.name for layer in model.layers]


def test_the_last_stage_is_quantized_and_feature_losses_find_the_wrapped_layers():
    hint = tfkd.losses.FeatureDistillation(teacher_layer_name="relu", student_layer_name="relu")
    stages = [Stage(1), Stage(1, structure=progressive.Quantize(X, target="tflite"))]
    distiller = make(stages, losses=[tfkd.losses.LogitsDistillation(2.0), hint])
    history = fit(distiller)
    assert isinstance(distiller.student, tfkd.quantization.QuantizedModel)
    assert distiller.student.calibrated and np.isfinite(history["feature_distillation"]).all()


def test_a_checkpoint_that_a_quantized_stage_would_break_is_found_before_training(tmp_path):
    stages = [Stage(1), Stage(1, "int8", structure=progressive.Quantize(X, target="tflite"))]
    distiller = make(stages)
    before = distiller.student.get_weights()
    whole = keras.callbacks.ModelCheckpoint(str(tmp_path / "d.keras"))
    with pytest.raises(ValueError, match="int8.*is quantized.*save_weights_only=True"):
        fit(distiller, callbacks=[whole])
    for a, b in zip(before, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    path = str(tmp_path / "d.weights.h5")
    weights = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    assert fit(distiller, callbacks=[weights])["stage"] == [0, 1]
    trained = distiller.student.get_weights()
    distiller.student.set_weights([np.zeros_like(w) for w in trained])
    distiller.distiller.load_weights(path)
    for a, b in zip(trained, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_each_stage_is_saved_whole_with_a_teacher_that_was_trained(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        x = keras.Input((8, 8, 1))
        h = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, name="conv")(x))
        teacher = keras.Model(x, keras.layers.Dense(2, dtype="float32")(h))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    teacher.compile("adam", CROSSENTROPY)
    teacher.fit(X, Y, verbose=0)
    stages = [Stage(1), Stage(1, structure=progressive.Prune(filter_rate=0.5))]
    distiller = make(stages, student=plain(2, width=8), teacher=teacher)
    path = str(tmp_path / "{epoch}.keras")
    fit(distiller, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    loaded = [keras.models.load_model(path.format(epoch=epoch)) for epoch in (1, 2)]
    assert [one.student.get_layer("conv").filters for one in loaded] == [8, 4]
    assert [int(one.optimizer.iterations) for one in loaded] == [4, 8]
    more = {"batch_size": 8, "shuffle": False, "verbose": 0}
    for one in (loaded[1], distiller.distiller):
        one.fit(X, Y, **more)
    toys.assert_same_weights(loaded[1].student, distiller.student, rtol=1e-6)


def test_everything_in_one_fit(tmp_path):
    stages = [
        Stage(1, "hints", freeze="scores"),
        Stage(2, "decay", decay=progressive.Decay({"filter_rate": 0.5}, end=0.5)),
        Stage(1, "int8", structure=[lambda m: m, progressive.Quantize(X, target="both")]),
    ]
    distiller = make(stages)
    board = tfkd.callbacks.TensorBoard(tmp_path, write_graph=False)
    history = fit(distiller, callbacks=[board])
    assert history["stage"] == [0, 1, 1, 2]
    exported = tfkd.export.to_tflite(distiller.student, tmp_path / "m.tflite", verify=X)
    assert exported.numbers["argmax_agreement"] > 0.9
    assert distiller.student.get_layer(
        "quant_conv" if has(distiller.student, "quant_conv") else "conv"
    )


def test_a_projector_outlives_a_cut_that_leaves_its_layer_alone():
    hint = tfkd.losses.FeatureDistillation(teacher_layer_name="relu", student_layer_name="stage1")
    stages = [Stage(1), Stage(1, structure=progressive.Prune(filter_rate=0.5))]
    distiller = make(stages, net(2), hint)
    first = distiller.distiller.projectors[0]
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model.projectors[0].get_weights())

        on_train_end = on_train_begin

    fit(distiller, callbacks=[Look()])
    assert distiller.student.get_layer("stage1_block1_1_conv").filters == 4
    assert distiller.distiller.projectors[0] is not first
    begin, end, begin_again, end_again = (weights[0] for weights in seen)
    np.testing.assert_array_equal(end, begin_again)
    assert np.abs(begin - end).max() > 1e-4 and np.abs(end - end_again).max() > 1e-4


def test_functions_of_the_user_must_return_a_model():
    with pytest.raises(TypeError, match=r"stage 1 \('cut'\): `structure`: expected functions that"):
        fit(make([Stage(1), Stage(1, "cut", structure=lambda model: None)]))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            [Stage(1), Stage(1, "a", freeze="convolution")],
            r"stage 1 \('a'\): `freeze`.*Did you mean",
        ),
        ([Stage(1, freeze="*")], "something left to train"),
        ([Stage(1, structure=progressive.Prune(filter_rate=2.0))], "stage 0: `filter_rate`"),
        ([Stage(1, structure=progressive.CutLayers(drop="nothing"))], "stage 0: "),
        (
            [
                Stage(1, structure=progressive.Quantize(X)),
                Stage(1, structure=progressive.Quantize(X)),
            ],
            "stage 1: .*quantized",
        ),
        ([Stage(1), Stage(1, structure=progressive.Quantize(X[:, :4]))], "stage 1: "),
        ([Stage(1, decay=progressive.Decay({"filter_rte": 0.5}))], "filter_rte"),
    ],
)
def test_stages_that_do_not_fit_are_found_before_training(stages, words):
    distiller = make(stages)
    before = toys.weights_of(distiller.student)
    with pytest.raises((ValueError, TypeError), match=words):
        fit(distiller)
    toys.assert_untouched(before, distiller.student)
    assert distiller.logs == []


def test_a_layer_that_a_loss_needs_may_not_be_cut():
    name = "stage1_block2_1_conv"
    hint = tfkd.losses.FeatureDistillation(teacher_layer_name="relu", student_layer_name=name)
    student = tfkd.models.resnet(14, 2, (8, 8, 1), widths=(4,))
    cut = progressive.CutLayers(drop="stage1_block2")
    with pytest.raises(ValueError, match=f"stage 1: `student_layer_name`.*{name}"):
        fit(make([Stage(1), Stage(1, structure=cut)], student, hint))


def test_filters_that_decayed_stay_zero_where_weights_are_averaged():
    """The averages come at the end of the stage, and hold what the filters were before."""
    ends = []

    class Look(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            kernel = self.model.student.get_layer("conv").kernel.numpy()
            ends.append((int((kernel == 0).all(axis=(0, 1, 2)).sum()), self.model.predict(X)))

    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
    decay = progressive.Decay({"filter_rate": 0.5}, end=0.5)
    distiller = make([Stage(2, decay=decay)], optimizer=optimizer)
    fit(distiller, callbacks=[Look()])
    ((zeros, scores),) = ends
    assert zeros == 8
    assert distiller.student.get_layer("conv").filters == 8
    np.testing.assert_allclose(distiller.predict(X), scores, rtol=1e-4, atol=1e-5)
