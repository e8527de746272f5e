"""Tiny random depth, segmentation and pose models in the format of transformers."""

from pathlib import Path

import torch
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    VitDetConfig,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vitmatte.image_processing_pil_vitmatte import VitMatteImageProcessorPil
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil


def tiny_depth(folder: Path) -> Path:
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
    )
    model = DPTForDepthEstimation(config)
    for weight in model.parameters():
        # With the initial weights all depths are nearly 0.
        weight.data.mul_(6 if weight.dim() > 1 else 1)
    torch.nn.init.constant_(model.head.head[-2].bias, 1.0)
    model.save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tiny_segmentation(folder: Path, *, classes: int = 150) -> Path:
    torch.manual_seed(1)
    config = SegformerConfig(
        hidden_sizes=(8, 16, 16, 16),
        depths=(1, 1, 1, 1),
        num_attention_heads=(1, 2, 2, 2),
        decoder_hidden_size=16,
        num_labels=classes,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}, do_reduce_labels=True).save_pretrained(folder)
    return folder


def tiny_matting(folder: Path, *, labels: tuple[str, ...] = ("background", "house", "tree, plant")) -> Path:
    """Save a model of semantic segmentation that finds all of its classes in most images."""
    torch.manual_seed(5)
    names = dict(enumerate(labels))
    config = SegformerConfig(
        hidden_sizes=(8, 16, 16, 16),
        depths=(1, 1, 1, 1),
        num_attention_heads=(1, 2, 2, 2),
        decoder_hidden_size=16,
        id2label=names,
        label2id={label: number for number, label in names.items()},
    )
    model = SegformerForSemanticSegmentation(config)
    for weight in model.parameters():
        # With the initial weights all classes are equally probable everywhere.
        weight.data.mul_(4 if weight.dim() > 1 else 1)
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=5.0)
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def tiny_matting_refiner(folder: Path) -> Path:
    torch.manual_seed(6)
    backbone = VitDetConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_channels=4,
        out_features=["stage2"],
    )
    config = VitMatteConfig(
        backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[4, 8, 8], fusion_hidden_sizes=[16, 8, 8, 8]
    )
    VitMatteForImageMatting(config).save_pretrained(folder)
    VitMatteImageProcessorPil().save_pretrained(folder)
    return folder


def tiny_pose(folder: Path) -> Path:
    """Save a model that detects all 17 keypoints, at random positions."""
    torch.manual_seed(2)
    backbone = VitPoseBackboneConfig(
        image_size=(64, 48), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, out_indices=[2]
    )
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))
    torch.nn.init.normal_(model.head.conv.weight, std=0.2)
    torch.nn.init.constant_(model.head.conv.bias, 1.0)
    model.save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def tiny_detector(folder: Path, *, label: str = "person") -> Path:
    """Save an RT-DETR that finds some people in any image, of classes `car` and `label`."""
    torch.manual_seed(3)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 16, 16],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_queries=6,
        num_denoising=0,
        id2label={0: "car", 1: label},
        label2id={"car": 0, label: 1},
    )
    model = RTDetrForObjectDetection(config)
    for head in (model.model.enc_score_head, *model.model.decoder.class_embed):
        # Scores that depend on the place in the image.
        torch.nn.init.normal_(head.weight, std=300.0)
        head.bias.data = torch.tensor([-1.0, 0.6])
    model.save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
