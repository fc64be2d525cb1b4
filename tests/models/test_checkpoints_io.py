from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tats_core.errors import WeightsError
from tats_core.models import checkpoints_io, hugging_face
from tats_core.models.classifier import VideoClassifier
from tats_core.models.mae import MAEConfig, VideoMAE
from tats_core.models.tokens import ClipConfig, positions
from tats_core.models.vit import ViTConfig

CLIP = ClipConfig(frames=4, size=8, tubelet=2, patch=4)
VIT = ViTConfig.model_validate({"preset": "vit_micro", "width": 24, "depth": 2, "heads": 3})


def _mae(seed: int = 0, **changes: Any) -> VideoMAE:
    torch.manual_seed(seed)
    vit = VIT.model_copy(update={k: v for k, v in changes.items() if k in ViTConfig.model_fields})
    config = {k: v for k, v in changes.items() if k in MAEConfig.model_fields}
    return VideoMAE(
        vit, MAEConfig(**{"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, **config}), CLIP
    )


def _official(model: nn.Module) -> dict[str, Tensor]:
    """Our weights as VideoMAE's own code would save them, with biases of queries and values apart."""
    renamed: dict[str, Tensor] = {}
    names = (
        ("encoder.embedding.", "encoder.patch_embed.proj."),
        ("to_decoder.", "encoder_to_decoder."),
        ("decoder_norm.", "decoder.norm."),
        ("to_pixels.", "decoder.head."),
        ("decoder.", "decoder.blocks."),
    )
    for name, tensor in model.state_dict().items():
        theirs = next((t + name.removeprefix(o) for o, t in names if name.startswith(o)), name)
        if name.startswith("to_pixels."):
            tensor = hugging_face.channels_last(tensor)
        if name.endswith("attn.qkv.bias"):
            query_D, _, value_D = tensor.chunk(3)
            at = theirs.removesuffix("qkv.bias")
            renamed |= {f"{at}q_bias": query_D, f"{at}v_bias": value_D}
        else:
            renamed[theirs] = tensor
    return renamed


def _assert_same(actual: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    for name, tensor in actual.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"model": t, "epoch": 799, "optimizer": {"state": {}}},
        lambda t: {"module": t},
        lambda t: {"state_dict": {f"module.{name}": x for name, x in t.items()}},
        lambda t: {"model": {f"_orig_mod.module.{name}": x for name, x in t.items()}},
        lambda t: {"model_state_dict": {f"model.{name}": x for name, x in t.items()}},
        lambda t: {
            "model": t,
            "args": argparse.Namespace(lr=1e-3, model="pretrain_videomae_base_patch16_224"),
        },
        lambda t: {"model": {f"backbone.{n}" if n.startswith("encoder.") else n: x for n, x in t.items()}},
    ],
    ids=[
        "bare",
        "model",
        "module",
        "state_dict and prefix",
        "compiled and distributed",
        "a trainer's",
        "with the command line's arguments",
        "a prefix on some names",
    ],
)
def test_every_common_wrapping_of_videomaes_pre_training_is_read(wrap: Any, tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    torch.save(wrap(_official(source)), tmp_path / "checkpoint.pth")
    match = checkpoints_io.load(target, checkpoints_io.read(tmp_path / "checkpoint.pth"))
    _assert_same(source, target)
    assert match.layout == "VideoMAE"
    matched = f"{len(source.state_dict())} tensors matched (VideoMAE layout)"
    assert match.sentence() == f"{matched}, its number of heads is unknown: as set here"


def test_adamaes_sampler_is_reported_as_unexpected_and_the_encoder_is_taken(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    sampler = {f"encoder.{name}": torch.zeros(3) for name in ("pos_embed_probs", "get_token_probs.1.weight")}
    torch.save({"model": _official(source) | sampler}, tmp_path / "ada.pth")
    match = checkpoints_io.load(target.encoder, checkpoints_io.read(tmp_path / "ada.pth"))
    _assert_same(source.encoder, target.encoder)
    assert match.unexpected == ("encoder.get_token_probs.1.weight", "encoder.pos_embed_probs")
    assert "2 unexpected (such as encoder.get_token_probs.1.weight)" in match.sentence()


def test_a_fine_tuned_file_of_videomae_has_no_encoder_in_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = VideoClassifier(VIT, CLIP, 5), VideoClassifier(VIT, CLIP, 5)
    theirs = {
        name.removeprefix("encoder.").replace("head_norm.", "fc_norm."): tensor
        for name, tensor in _official(source).items()
    }
    table = positions(CLIP, 24, "joint").unsqueeze(0)
    torch.save({"module": theirs | {"pos_embed": table}}, tmp_path / "finetuned.pth")
    foreign = checkpoints_io.read(tmp_path / "finetuned.pth")
    assert foreign.kind == "fine-tuned"
    assert checkpoints_io.load(target, foreign).unexpected == ()
    _assert_same(source, target)


def test_an_encoder_of_another_size_is_refused_with_what_differs(tmp_path: Path) -> None:
    torch.save(_official(_mae(width=48, depth=3)), tmp_path / "large.pth")
    with pytest.raises(
        WeightsError, match=r"another width 48 \(here 24\), depth 3 \(here 2\), mlp 192 \(here 96\)"
    ):
        checkpoints_io.load(_mae().encoder, checkpoints_io.read(tmp_path / "large.pth"))


def test_a_pre_trained_file_where_classes_are_needed_is_refused(tmp_path: Path) -> None:
    torch.save(_official(_mae()), tmp_path / "pre.pth")
    with pytest.raises(WeightsError, match=r"pre\.pth: is pre-trained and has no classes; name a fine-tuned"):
        checkpoints_io.load(VideoClassifier(VIT, CLIP, 5), checkpoints_io.read(tmp_path / "pre.pth"))


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not be printed",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _official(_mae()), "args": _Code()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="could run its code"):
        checkpoints_io.read(tmp_path / "evil.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no tensors"),
        ({"model": {"conv1.weight": torch.zeros(2)}}, "holds no encoder of VideoMAE's"),
        ([torch.zeros(2)], "is no state dict but a list"),
    ],
)
def test_a_file_without_a_video_encoder_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        checkpoints_io.read(tmp_path / "other.pth")


def test_a_file_that_is_not_there_or_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoints_io.read(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"text.pth: the checkpoint cannot be read"):
        checkpoints_io.read(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("no", encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoints_io.read(tmp_path / "text.safetensors")
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor"):
        checkpoints_io.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"positions": "separable"}, "model.positions: joint"),
        ({"global_token": True}, "mae.global_token: false"),
        ({"target": "pixel"}, "mae.target: normalized"),
    ],
)
def test_what_hugging_face_cannot_hold_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(WeightsError, match=f"has only {key}; export as safetensors"):
        hugging_face.exported(_mae(**changes))


@given(st.integers(1, 4), st.integers(1, 5))
def test_the_order_of_pixels_goes_there_and_back(pixels: int, width: int) -> None:
    rows_PX = torch.arange(3 * pixels * width).view(3 * pixels, width)
    turned = hugging_face.channels_first(rows_PX)
    assert torch.equal(hugging_face.channels_last(turned), rows_PX)
    # The first rows are all of red: every third one.
    assert torch.equal(turned[:pixels], rows_PX[::3])


def test_out_and_in_again_is_the_same_but_for_the_key_bias(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    tensors, _ = hugging_face.exported(source)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoints_io.load(target, checkpoints_io.read(tmp_path))
    state = target.state_dict()
    for name, tensor in source.state_dict().items():
        if name.endswith("qkv.bias"):
            width = len(tensor) // 3
            assert not state[name][width : 2 * width].any()
            tensor = tensor.clone()
            tensor[width : 2 * width] = 0
        assert torch.equal(tensor, state[name]), name


def test_the_older_names_of_hugging_faces_biases_are_read_too(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    with torch.no_grad():
        for block in source.encoder.blocks:
            block.attn.qkv.bias.copy_(torch.randn(72))  # type: ignore[union-attr, operator]
            block.attn.qkv.bias[24:48] = 0  # type: ignore[union-attr, index, operator]
    tensors, _ = hugging_face.exported(source)
    older = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): x for name, x in tensors.items()
    }
    assert any(name.endswith("attention.attention.q_bias") for name in older)
    torch.save(older, tmp_path / "pytorch_model.bin")
    checkpoints_io.load(target, checkpoints_io.read(tmp_path / "pytorch_model.bin"))
    _assert_same(source, target)


@pytest.mark.parametrize("block", [0, 1, None], ids=["first block", "last block", "all blocks"])
@pytest.mark.parametrize("lacking", [("q_bias", "v_bias"), ("q_bias",), ("v_bias",)])
def test_a_file_without_biases_of_queries_or_values_is_refused(
    block: int | None, lacking: tuple[str, ...], tmp_path: Path
) -> None:
    where = ".attn." if block is None else f"encoder.blocks.{block}.attn."
    tensors = _official(_mae())
    bare = {n: x for n, x in tensors.items() if not (n.endswith(lacking) and where in n)}
    assert len(bare) == len(tensors) - len(lacking) * (
        1 if block is not None else 3
    )  # two blocks, one decoder's
    torch.save(bare, tmp_path / "bare.pth")
    words = " and ".join({"q_bias": "query", "v_bias": "value"}[name] for name in lacking)
    first = f"encoder.blocks.{block or 0}.attn"
    with pytest.raises(WeightsError, match=rf"bare\.pth: {first} has no bias of {words} \(q_bias, v_bias\)"):
        checkpoints_io.read(tmp_path / "bare.pth")


def test_a_file_without_the_weight_of_keys_is_refused(tmp_path: Path) -> None:
    tensors, _ = hugging_face.exported(_mae())
    lacking = next(name for name in tensors if name.endswith("key.weight"))
    del tensors[lacking]
    torch.save(tensors, tmp_path / "bare.pth")
    with pytest.raises(
        WeightsError, match=r"bare\.pth: encoder\.blocks\.0\.attn needs weights of query, key"
    ):
        checkpoints_io.read(tmp_path / "bare.pth")


def test_a_model_that_declares_to_have_no_biases_in_its_attention_gets_zeros(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    tensors, config = hugging_face.exported(source)
    bare = {n: x for n, x in tensors.items() if not n.endswith(("query.bias", "value.bias"))}
    torch.save(bare, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config | {"qkv_bias": False}))
    checkpoints_io.load(target.encoder, checkpoints_io.read(tmp_path))
    for block in target.encoder.blocks:
        assert not block.attn.qkv.bias.any()  # type: ignore[union-attr, operator]


def test_weights_of_longer_clips_say_what_is_done_with_shorter_ones(tmp_path: Path) -> None:
    longer = VideoMAE(VIT, _mae().config, CLIP.model_copy(update={"frames": 8}))
    tensors, config = hugging_face.exported(longer)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = "frames 8 (here 4): the fixed positions are computed for the clip here"
    match = checkpoints_io.load(_mae().encoder, checkpoints_io.read(tmp_path))
    assert match.sentence().endswith(f", made for clips of {done}")
    # VideoMAE's files have the command line's arguments; others may have the table of positions.
    arguments = argparse.Namespace(num_frames=8, input_size=8)
    torch.save({"model": _official(longer), "args": arguments}, tmp_path / "official.pth")
    match = checkpoints_io.load(_mae().encoder, checkpoints_io.read(tmp_path / "official.pth"))
    assert match.adapted == f"made for clips of {done}; its number of heads is unknown: as set here"
    table = {"encoder.pos_embed": positions(longer.encoder.clip, 24, "joint").unsqueeze(0)}
    torch.save(_official(longer) | table, tmp_path / "official.pth")
    match = checkpoints_io.load(_mae().encoder, checkpoints_io.read(tmp_path / "official.pth"))
    assert match.adapted.startswith("made for clips of 16 tokens (here 8): the fixed positions are computed")
    assert checkpoints_io.load(longer.encoder, checkpoints_io.read(tmp_path)).adapted == ""


def test_a_bare_encoder_of_hugging_face_is_read_without_its_prefix(tmp_path: Path) -> None:
    source, target = _mae(0), _mae(1)
    tensors, _ = hugging_face.exported(source)
    bare = {name.removeprefix("videomae."): x for name, x in tensors.items() if name.startswith("videomae.")}
    torch.save(bare, tmp_path / "encoder.pth")
    foreign = checkpoints_io.read(tmp_path / "encoder.pth")
    assert (foreign.layout, foreign.kind) == ("Hugging Face", "encoder")
    assert checkpoints_io.load(target.encoder, foreign).missing == ()
    _assert_same(source.encoder, target.encoder)


def test_other_heads_are_refused_where_the_file_beside_the_weights_declares_them(tmp_path: Path) -> None:
    tensors, config = hugging_face.exported(_mae())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    foreign = checkpoints_io.read(tmp_path)
    assert foreign.size["heads"] == 4
    with pytest.raises(WeightsError, match=r"another heads 4 \(here 3\); set model and clip alike"):
        checkpoints_io.load(_mae().encoder, foreign)


def test_an_encoder_of_videomae_does_not_fit_other_positions(tmp_path: Path) -> None:
    torch.save(_official(_mae()), tmp_path / "pre.pth")
    separable = _mae(positions="separable")
    with pytest.raises(WeightsError, match=r"another positions joint \(here separable\)"):
        checkpoints_io.load(separable.encoder, checkpoints_io.read(tmp_path / "pre.pth"))


def test_learned_positions_are_refused(tmp_path: Path) -> None:
    torch.save(_official(_mae()) | {"encoder.pos_embed": torch.rand(1, 8, 24)}, tmp_path / "learned.pth")
    with pytest.raises(
        WeightsError, match=r"its positions \(encoder.pos_embed\) are not VideoMAE's fixed table"
    ):
        checkpoints_io.read(tmp_path / "learned.pth")


def test_a_file_with_two_models_is_refused(tmp_path: Path) -> None:
    tensors = _official(_mae())
    twice = tensors | {f"module.{name}": x for name, x in tensors.items()}
    torch.save(twice, tmp_path / "twice.pth")
    with pytest.raises(WeightsError, match="holds two models"):
        checkpoints_io.read(tmp_path / "twice.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vivit"}, "its model_type is 'vivit', not 'videomae'"),
        ({"hidden_act": "relu"}, "its hidden_act is 'relu'"),
        ({"hidden_size": None}, "does not describe a video encoder"),
    ],
)
def test_a_config_of_another_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors, config = hugging_face.exported(_mae())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WeightsError, match=message):
        checkpoints_io.read(tmp_path)


@given(st.integers(8, 1408), st.integers(1, 8000))
def test_any_width_of_an_mlp_comes_back_from_a_config(width: int, mlp: int) -> None:
    _, config = hugging_face.exported(_mae())
    sizes = {"hidden_size": width, "num_attention_heads": 1, "intermediate_size": mlp}
    vit, clip = hugging_face.configs_of(config | sizes)
    assert int(vit.width * vit.mlp_ratio) == mlp
    assert clip == CLIP


def test_blocks_with_a_layer_scale_are_another_architecture(tmp_path: Path) -> None:
    scaled = _official(_mae()) | {f"encoder.blocks.{block}.gamma_1": torch.ones(24) for block in (0, 1)}
    torch.save(scaled, tmp_path / "scaled.pth")
    with pytest.raises(WeightsError, match="its blocks have gamma_1, which ours have not"):
        checkpoints_io.load(_mae().encoder, checkpoints_io.read(tmp_path / "scaled.pth"))


@pytest.mark.parametrize(
    ("key", "theirs"), [("decoder_heads", 4), ("decoder_depth", 3), ("decoder_width", 24)]
)
def test_a_decoder_of_another_shape_is_refused_by_its_key(key: str, theirs: int, tmp_path: Path) -> None:
    tensors, config = hugging_face.exported(_mae(**{key: theirs}))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    here = getattr(_mae().config, key)
    with pytest.raises(
        WeightsError, match=rf"decoder has another {key} {theirs} \(here {here}\); set mae alike"
    ):
        checkpoints_io.load(_mae(), checkpoints_io.read(tmp_path))


def test_a_decoder_without_a_global_token_is_refused_where_one_is_wanted(tmp_path: Path) -> None:
    torch.save(_official(_mae()), tmp_path / "pre.pth")
    with pytest.raises(WeightsError, match=r"another global_token false \(here true\); set mae alike"):
        checkpoints_io.load(_mae(global_token=True), checkpoints_io.read(tmp_path / "pre.pth"))


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"decoder_heads": 4}, r"its decoder has another decoder_heads 3 \(here 4\); set mae alike"),
        ({"heads": 4}, r"its encoder has another heads 3 \(here 4\); set model and clip alike"),
    ],
)
def test_heads_that_do_not_show_in_videomaes_files_are_known_by_the_width(
    changes: dict[str, int], differs: str, tmp_path: Path
) -> None:
    # VideoMAE's small decoder is 192 wide and has 3 heads; loaded with 4 it would predict something else.
    small = {"width": 192, "heads": 3, "decoder_width": 192, "decoder_heads": 3}
    source = _mae(0, **small)
    torch.save({"model": _official(source)}, tmp_path / "small.pth")
    foreign = checkpoints_io.read(tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=differs):
        checkpoints_io.load(_mae(1, **(small | changes)), foreign)
    target = _mae(1, **small)
    assert checkpoints_io.load(target, foreign).adapted == ""
    _assert_same(source, target)
    # Of the encoder alone, the decoder's heads are of no interest.
    assert checkpoints_io.load(_mae(1, **(small | {"decoder_heads": 4})).encoder, foreign).adapted == ""
