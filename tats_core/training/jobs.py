"""What a worker of each training stage does: read its job, build data and model, run the loop, save.

A job is plain JSON, so that it can travel to any machine. Outputs are written into `job.out` by rank 0:
`model.safetensors` with `model.json`, and `result.json` with the figures of the tables.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tats_core.data import ground_truth
from tats_core.data.loaders import ClipOptions, TrainLoader, eval_views
from tats_core.data.manifest import Manifest
from tats_core.errors import SpecError
from tats_core.models.classifier import VideoClassifier
from tats_core.models.tokens import ClipConfig
from tats_core.specs import StrictModel
from tats_core.training import metrics, weights
from tats_core.training.checkpoint import CheckpointStore
from tats_core.training.events import EventLog
from tats_core.training.finetune import FinetuneConfig, FinetuneTrainer, finetune, score_views
from tats_core.training.health import HealthCheck, HeldOut
from tats_core.training.optim import evaluating, parameter_count
from tats_core.training.pretrain import JointTrainer, PretrainConfig, pretrain
from tats_core.training.world import World


class PretrainJob(StrictModel):
    """Pre-train on the clips of one manifest."""

    recipe: PretrainConfig
    data: ClipOptions
    train: str = Field(description="manifest of the training videos")
    held_out: str = Field(description="manifest of videos for health figures and pictures")
    health_clips: int = Field(256, ge=1, description="clips of each of the two for the health check")
    out: str


class FinetuneJob(StrictModel):
    """Fine-tune on the labelled clips of one manifest."""

    recipe: FinetuneConfig
    data: ClipOptions
    train: str
    labels_per_class: int | None = None
    encoder: str | None = Field(None, description="folder of the pre-trained model; null: from scratch")
    benchmark: str
    init: str
    out: str


class EvaluateJob(StrictModel):
    """Test a fine-tuned model on all videos of one manifest."""

    data: ClipOptions
    test: str
    model: str = Field(description="folder of the fine-tuned model")
    clips: int | None = None
    crops: int | None = None
    batch_size: int = 8
    benchmark: str
    init: str
    out: str


class ProbeJob(StrictModel):
    """Linear and kNN probe of a frozen encoder."""

    model: dict[str, Any]
    clip: ClipConfig
    data: ClipOptions
    train: str
    test: str
    labels_per_class: int | None = None
    encoder: str | None = None
    batch_size: int = 32
    seed: int = 0
    benchmark: str
    init: str
    out: str


def clip_options(clip: ClipConfig, data: ClipOptions) -> ClipOptions:
    """Give the loader the model's clip: frames and size have one home, `clip`."""
    for name in ("frames", "size"):
        if name in data.model_fields_set and getattr(data, name) != getattr(clip, name):
            raise SpecError(f"data.{name} contradicts clip.{name}: leave it out and set clip.{name}")
    return data.model_copy(update={"frames": clip.frames, "size": clip.size})


def run_pretrain(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Joint pre-training of one worker."""
    began = time.perf_counter()
    task = PretrainJob.model_validate(job)
    recipe, out = task.recipe, Path(task.out)
    options = clip_options(recipe.clip, task.data)
    manifest = Manifest.load(Path(task.train))
    loader = TrainLoader(
        manifest,
        options,
        batch_size=per_worker(recipe.batch_size, world),
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        purpose="pretrain",
    )
    trainer = JointTrainer(recipe, world)
    visible, tokens = trainer.sampler.visible, trainer.sampler.tokens
    parameters = parameter_count([trainer.mae])
    events.params(
        {
            "clips": len(manifest),
            "global_batch": recipe.batch_size,
            "steps": recipe.epochs * loader.steps,
            "epochs": recipe.epochs,
            "peak_lr": recipe.optimizer.scaled(recipe.optimizer.base_lr, recipe.batch_size),
            "visible_tokens": visible,
            "tokens": tokens,
            "workers": world.size,
            "device": str(world.device),
            "parameters": parameters,
            "sampler_parameters": parameter_count([trainer.sampler]),
        }
    )
    held_out = held_out_clips(manifest, Manifest.load(Path(task.held_out)), options, task.health_clips, world)
    health = HealthCheck(held_out, recipe.sampler.mask_ratio, world, events, out, recipe.seed)
    figures = pretrain(trainer, loader, events=events, store=store, health=health)
    _say_unreadable(loader, events)
    if world.is_first:
        weights.save(out, trainer.mae, {"model": recipe.model, "clip": recipe.clip, "mae": recipe.mae})
        weights.save(out, trainer.sampler, {"sampler": recipe.sampler}, name="sampler")
        usage = {
            "seconds": time.perf_counter() - began,
            "peak_memory_mb": metrics.peak_memory_mb(world.device),
            "parameters": parameters,
            "visible": visible,
            "tokens": tokens,
            "mask_ratio": recipe.sampler.mask_ratio,
            "sampler": recipe.sampler.kind,
            "skipped_steps": trainer.mae_step.skipped,
            "unreadable_videos": len(loader.unreadable),
        }
        _write_result(out, figures | usage)


def run_finetune(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Fine-tuning of one worker."""
    began = time.perf_counter()
    task = FinetuneJob.model_validate(job)
    recipe, out = task.recipe, Path(task.out)
    manifest = few_labels(Manifest.load(Path(task.train)), task.labels_per_class, recipe.seed)
    loader = TrainLoader(
        manifest,
        clip_options(recipe.clip, task.data),
        batch_size=per_worker(recipe.batch_size, world),
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        samples_per_clip=recipe.samples_per_clip,
        purpose="finetune",
    )
    trainer = FinetuneTrainer(recipe, len(manifest.classes), world)
    if task.encoder is not None:
        weights.load_encoder(trainer.model.encoder, Path(task.encoder), without=("norm.",))
    trainer.start()
    events.params(
        {
            "clips": len(manifest),
            "classes": len(manifest.classes),
            "global_batch": recipe.batch_size * recipe.samples_per_clip,
            "steps": recipe.epochs * loader.steps,
            "epochs": recipe.epochs,
            "peak_lr": recipe.optimizer.scaled(recipe.optimizer.base_lr, recipe.batch_size),
            "tokens": recipe.clip.tokens,
            "workers": world.size,
            "device": str(world.device),
        }
    )
    figures = finetune(trainer, loader, events=events, store=store)
    _say_unreadable(loader, events)
    if world.is_first:
        described = {
            "model": recipe.model,
            "clip": recipe.clip,
            "head_norm": recipe.head_norm,
            "classes": list(manifest.classes),
        }
        weights.save(out, trainer.model, described)
        usage = {
            "benchmark": task.benchmark,
            "init": task.init,
            "labels": len(manifest),
            "seconds": time.perf_counter() - began,
            "peak_memory_mb": metrics.peak_memory_mb(world.device),
            "parameters": parameter_count([trainer.model]),
            "skipped_steps": trainer.guarded.skipped,
            "unreadable_videos": len(loader.unreadable),
        }
        _write_result(out, figures | usage)


def run_evaluate(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Multi-view test: each worker scores its share of the videos, rank 0 writes the result."""
    began = time.perf_counter()
    task = EvaluateJob.model_validate(job)
    manifest = Manifest.load(Path(task.test))
    model, classes = load_classifier(Path(task.model))
    if tuple(classes) != manifest.classes:
        raise SpecError(
            f"the model in {task.model} knows other classes ({len(classes)}) than the test videos of "
            f"{manifest.benchmark} ({len(manifest.classes)}); evaluate it on the data it was fine-tuned for"
        )
    views = eval_views(
        manifest,
        clip_options(model.encoder.clip, task.data),
        clips=task.clips,
        crops=task.crops,
        batch_size=task.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    scores_BC, label_B, index_B = score_views(model.to(world.device), views, world)
    scores_BC, label_B, index_B = gather_uneven(world, scores_BC, label_B, index_B)
    if not world.is_first:
        return
    top1 = metrics.top_k_percent(scores_BC, label_B, 1)
    low, high = metrics.wilson_interval(top1, len(manifest))
    figures = {
        "top1": top1,
        "top5": metrics.top_k_percent(scores_BC, label_B, 5),
        "low": low,
        "high": high,
        "chance": 100 / len(classes),
    }
    events.metrics(1, figures)
    described = {
        "benchmark": task.benchmark,
        "init": task.init,
        "clips": len(manifest),
        "classes": len(classes),
        "parameters": parameter_count([model]),
        "seconds": time.perf_counter() - began,
        "peak_memory_mb": metrics.peak_memory_mb(world.device),
    }
    order = index_B.argsort()
    predictions = [
        {"id": manifest.videos[int(index)].id, "label": int(label), "predicted": int(best)}
        for index, label, best in zip(
            index_B[order], label_B[order], scores_BC.argmax(1)[order], strict=True
        )
    ]
    _write_json(Path(task.out) / "predictions.json", predictions)
    _write_result(Path(task.out), figures | described)


def run_probe(job: Mapping[str, Any], world: World, events: EventLog, store: CheckpointStore) -> None:
    """Linear and kNN probe of the frozen encoder's mean-pooled tokens, in one process."""
    began = time.perf_counter()
    task = ProbeJob.model_validate(job)
    train = few_labels(Manifest.load(Path(task.train)), task.labels_per_class, task.seed)
    test = Manifest.load(Path(task.test))
    torch.manual_seed(task.seed)
    recipe = FinetuneConfig.model_validate({"model": task.model, "clip": task.clip})
    model = VideoClassifier(recipe.model, task.clip, len(train.classes))
    if task.encoder is not None:
        weights.load_encoder(model.encoder, Path(task.encoder), without=("norm.",))
    model.to(world.device)
    options = clip_options(task.clip, task.data)
    halves: list[tuple[Tensor, Tensor]] = []
    with evaluating(model):
        for manifest in (train, test):
            features, labels = [], []
            batches = eval_views(manifest, options, clips=1, crops=1, batch_size=task.batch_size)
            for views_BVCTHW, label_B, _ in batches:
                features.append(model.features(views_BVCTHW[:, 0].to(world.device)).float().cpu())
                labels.append(label_B)
            halves.append((torch.cat(features), torch.cat(labels)))
    (train_BD, train_label_B), (test_BD, test_label_B) = halves
    classes = len(train.classes)
    linear_BC = metrics.ridge_probe(train_BD, train_label_B, test_BD, classes)
    knn_BC = metrics.knn_probe(train_BD, train_label_B, test_BD, classes)
    figures = {
        "linear_top1": metrics.top_k_percent(linear_BC, test_label_B, 1),
        "knn_top1": metrics.top_k_percent(knn_BC, test_label_B, 1),
        "effective_rank": metrics.effective_rank(test_BD),
    }
    events.metrics(1, figures)
    described = {
        "benchmark": task.benchmark,
        "init": task.init,
        "clips": len(test),
        "labels": len(train),
        "seconds": time.perf_counter() - began,
    }
    _write_result(Path(task.out), figures | described)


def load_classifier(folder: Path) -> tuple[VideoClassifier, list[str]]:
    """Rebuild the fine-tuned model saved in `folder`; returns it with its class names."""
    described = weights.describe(folder)
    recipe = FinetuneConfig.model_validate({"model": described["model"], "clip": described["clip"]})
    classes: list[str] = described["classes"]
    model = VideoClassifier(recipe.model, recipe.clip, len(classes), head_norm=described["head_norm"])
    weights.load(folder, model)
    return model, classes


def few_labels(manifest: Manifest, per_class: int | None, seed: int) -> Manifest:
    """Keep `per_class` videos of each class (all for None), the same ones for the same seed."""
    return manifest if per_class is None else manifest.few_labels(per_class, seed)


def per_worker(batch_size: int, world: World) -> int:
    """Share a global batch evenly.

    Raises:
        SpecError: it does not divide.
    """
    if batch_size % world.size:
        raise SpecError(
            f"batch_size ({batch_size}) is over all workers and must be a multiple of workers ({world.size})"
        )
    return batch_size // world.size


def held_out_clips(
    train: Manifest, test: Manifest, options: ClipOptions, clips: int, world: World
) -> HeldOut:
    """This worker's share of the clips of a health check, `clips` of each manifest over all workers."""
    count = min(clips, len(train), len(test)) // world.size * world.size
    halves = []
    for manifest in (train.few_labels(max(1, count // len(train.classes)), 0), test):
        part = manifest.first(count) if len(manifest) > count else manifest
        shared = len(part) // world.size * world.size
        batches = eval_views(
            part.first(shared), options, clips=1, crops=1, rank=world.rank, world_size=world.size
        )
        videos, labels, indices = zip(*((v[:, 0], label, index) for v, label, index in batches), strict=True)
        halves.append((part, torch.cat(videos), torch.cat(labels), torch.cat(indices)))
    (_, train_BCTHW, train_label_B, _), (part, test_BCTHW, test_label_B, index_B) = halves
    motion_BTHW = None
    if ground_truth.has_motion(test):
        motion_BTHW = ground_truth.motion_clips(part, options, index_B.tolist())
    return HeldOut(train_BCTHW, train_label_B, test_BCTHW, test_label_B, motion_BTHW, len(train.classes))


def gather_uneven(world: World, *tensors: Tensor) -> list[Tensor]:
    """Join tensors of all workers along axis 0 where their lengths differ by at most a little."""
    if world.size == 1:
        return list(tensors)
    length = torch.tensor([len(tensors[0])], device=world.device)
    lengths = world.gather(length).tolist()
    joined = []
    for tensor in tensors:
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = world.gather(padded.to(world.device)).cpu().split(max(lengths))
        joined.append(torch.cat([part[:own] for part, own in zip(parts, lengths, strict=True)]))
    return joined


def _say_unreadable(loader: TrainLoader, events: EventLog) -> None:
    for path, reason in loader.unreadable.items():
        events.note(f"skipped a video that cannot be read: {path}: {reason}")


def _write_result(out: Path, figures: Mapping[str, Any]) -> None:
    _write_json(out / "result.json", dict(figures))


def _write_json(path: Path, value: Any) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
