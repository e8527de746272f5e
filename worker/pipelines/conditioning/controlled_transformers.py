"""ControlNets of transformers: a forward of the transformer that runs the ControlNets of one job before it.

Stock pipelines with ControlNets exist for some tasks of these families only, and differ from the pipelines without in
nothing but this step. The pipelines without ControlNets run unmodified, and every task has controls.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

from img2img.domain.conditioning import ControlWeight

from ...engine.gate import Gate
from ..gates import pad_captions, unpad_captions
from .control_gates import scaled_samples


@dataclass(frozen=True)
class ActiveControl:
    """A control of one job.

    Attributes:
        net: the ControlNet.
        run: its gate.
        mode: its mode for the map, if it is a union.
        pixels: control map of shape (1, 3, height, width) with values in [-1, 1].
        weight: scale and span.
    """

    net: Any
    run: Callable[..., Any]
    mode: int | None
    pixels: torch.Tensor
    weight: ControlWeight


class ControlledTransformer:
    """Forward of a transformer for one job with controls.

    A step outside of the span of every control is the unmodified forward, which other jobs share.
    """

    # Keyword arguments of the ControlNet without a batch dimension.
    shared: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        controls: Sequence[ActiveControl],
        *,
        generator: torch.Generator,
        guidance_scale: float,
    ) -> None:
        """Encode the control maps, and put this forward into the pipeline object of a job.

        Args:
            generator: of the job; encoding draws from it before the pipeline does, as in the stock pipelines.
        """
        self._pipeline = pipeline
        self._controls = controls
        self._guidance_scale = guidance_scale
        self._step = 0
        self._inputs = [self.encode(control, generator) for control in controls]
        transformer = copy.copy(pipeline.transformer)
        self._forward = transformer.forward
        transformer.forward = self
        pipeline.transformer = transformer

    @classmethod
    def gate(cls, net: Any, transformer: Any) -> Callable[..., Any]:  # noqa: ARG003
        """Return the gate of a ControlNet.

        Args:
            transformer: transformer of the model, with its gate.
        """
        return scaled_samples(net, cls.shared)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        active = self._active()
        if not active:
            return self._forward(*args, **kwargs)
        return self._forward(*args, **kwargs, **self.samples(active, kwargs))

    def skip_step(self) -> None:
        """Count a step that does without a call."""
        self._step += 1

    def encode(self, control: ActiveControl, generator: torch.Generator) -> torch.Tensor:
        """Return the input of the ControlNet for its map."""
        raise NotImplementedError

    def samples(self, active: Sequence[int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the ControlNets at these positions. Returns arguments of the transformer.

        Args:
            kwargs: arguments of the transformer without controls.
        """
        raise NotImplementedError

    def _active(self) -> list[int]:
        """Return the positions of the controls that are active at the next step, and count the step."""
        begin, total = self._step, self._pipeline.num_timesteps
        self._step += 1
        weights = [control.weight for control in self._controls]
        return [
            index
            for index, weight in enumerate(weights)
            if weight.scale and begin / total >= weight.start and (begin + 1) / total <= weight.end
        ]

    def _latents(self, control: ActiveControl, generator: torch.Generator | None = None, rows: int = 1) -> Any:
        """Return the distribution's sample of the latents of a control map, unscaled."""
        vae = self._pipeline.vae
        pixels = control.pixels.to(self._pipeline._execution_device, self._pipeline.dtype).repeat(rows, 1, 1, 1)
        if self._pipeline.vae.config.get("z_dim"):  # of a video
            pixels = pixels.unsqueeze(2)
        return retrieve_latents(vae.encode(pixels), generator)


class SD3Transformer(ControlledTransformer):
    """Stable Diffusion 3 and 3.5."""

    def __init__(self, *args: Any, generator: torch.Generator, **kwargs: Any) -> None:
        # The stock pipeline encodes maps with the global generator. This one replaces it: equal seeds give equal
        # images.
        own = torch.Generator("cpu").manual_seed(generator.initial_seed())
        super().__init__(*args, generator=own, **kwargs)

    @classmethod
    def gate(cls, net: Any, transformer: Any) -> Callable[..., Any]:
        if not net.config.use_pos_embed:
            # ControlNets of Stable Diffusion 3.5 use the position embedding of the transformer.
            net.pos_embed = transformer.pos_embed
        return super().gate(net, transformer)

    def encode(self, control: ActiveControl, generator: torch.Generator) -> torch.Tensor:
        config = self._pipeline.vae.config
        latents = self._latents(control, generator, rows=2 if self._guidance_scale > 1 else 1)
        shift = 0 if control.net.config.force_zeros_for_pooled_projection else config.shift_factor
        encoded: torch.Tensor = (latents - shift) * config.scaling_factor
        return encoded

    def samples(self, active: Sequence[int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = [self._run(self._controls[index], self._inputs[index], kwargs) for index in active]
        return {"block_controlnet_hidden_states": _sum(outputs)}

    def _run(self, control: ActiveControl, latents: torch.Tensor, kwargs: Mapping[str, Any]) -> Any:
        config, pooled = control.net.config, kwargs["pooled_projections"]
        return control.run(
            hidden_states=kwargs["hidden_states"],
            timestep=kwargs["timestep"],
            encoder_hidden_states=None if config.joint_attention_dim is None else kwargs["encoder_hidden_states"],
            pooled_projections=torch.zeros_like(pooled) if config.force_zeros_for_pooled_projection else pooled,
            controlnet_cond=latents,
            conditioning_scale=control.weight.scale,
        )[0]


class FluxTransformer(ControlledTransformer):
    """FLUX.1."""

    shared = ("img_ids", "txt_ids")

    def encode(self, control: ActiveControl, generator: torch.Generator) -> torch.Tensor:
        if control.net.input_hint_block is not None:
            return control.pixels.to(self._pipeline._execution_device, self._pipeline.dtype)
        config = self._pipeline.vae.config
        latents = (self._latents(control, generator) - config.shift_factor) * config.scaling_factor
        packed: torch.Tensor = self._pipeline._pack_latents(latents, *latents.shape)
        return packed

    def samples(self, active: Sequence[int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = [self._run(self._controls[index], self._inputs[index], kwargs) for index in active]
        singles = [single for _, single in outputs if single is not None]
        doubles = [double for double, _ in outputs if double is not None]
        return {
            "controlnet_block_samples": _sum(doubles) if doubles else None,
            "controlnet_single_block_samples": _sum(singles) if singles else None,
            "controlnet_blocks_repeat": self._controls[0].net.input_hint_block is not None,
        }

    def _run(self, control: ActiveControl, latents: torch.Tensor, kwargs: Mapping[str, Any]) -> Any:
        names = ("hidden_states", "timestep", "pooled_projections", "encoder_hidden_states", "img_ids", "txt_ids")
        hidden = kwargs["hidden_states"]
        guidance = torch.full((len(hidden),), self._guidance_scale, device=hidden.device)
        mode = None if control.mode is None else torch.full((len(hidden), 1), control.mode, device=hidden.device)
        return control.run(
            **{name: kwargs[name] for name in names},
            guidance=guidance if control.net.config.guidance_embeds else None,
            controlnet_cond=latents,
            controlnet_mode=mode,
            conditioning_scale=control.weight.scale,
        )


class QwenTransformer(ControlledTransformer):
    """Qwen-Image. The pass with the prompt runs the ControlNets, and the pass without shares their outputs."""

    def __init__(self, pipeline: DiffusionPipeline, *args: Any, **kwargs: Any) -> None:
        super().__init__(pipeline, *args, **kwargs)
        self._context: Callable[[str], AbstractContextManager[None]] = pipeline.transformer.cache_context
        self._context_name = ""
        self._last: dict[str, Any] = {}
        pipeline.transformer.cache_context = self._cache_context

    @contextmanager
    def _cache_context(self, name: str) -> Iterator[None]:
        self._context_name = name
        with self._context(name):
            yield

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._context_name != "uncond":
            active = self._active()
            self._last = self.samples(active, kwargs) if active else {}
        return self._forward(*args, **kwargs, **self._last)

    def skip_step(self) -> None:
        if self._context_name != "uncond":
            super().skip_step()

    def encode(self, control: ActiveControl, generator: torch.Generator) -> torch.Tensor:
        pipeline, config = self._pipeline, self._pipeline.vae.config
        mean, deviation = (
            torch.tensor(values).view(1, config.z_dim, 1, 1, 1).to(pipeline._execution_device)
            for values in (config.latents_mean, config.latents_std)
        )
        latents = (self._latents(control, generator) - mean) * (1.0 / deviation)
        batch, channels, _frames, height, width = latents.shape
        packed: torch.Tensor = pipeline._pack_latents(
            latents.permute(0, 2, 1, 3, 4), batch, channels, height, width
        ).to(pipeline.dtype)
        return packed

    def samples(self, active: Sequence[int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = (
            *("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_mask"),
            "img_shapes",
        )
        outputs = [
            self._controls[index].run(
                **{name: kwargs[name] for name in names},
                controlnet_cond=self._inputs[index],
                conditioning_scale=self._controls[index].weight.scale,
            )
            for index in active
        ]
        return {"controlnet_block_samples": _sum(outputs)}


class ZImageTransformer(ControlledTransformer):
    """Z-Image. One gate runs the ControlNet and the transformer: both pad captions to the longest of a batch."""

    @classmethod
    def gate(cls, net: Any, transformer: Any) -> Callable[..., Any]:
        # The weights count as the ControlNet's own, also before the first call.
        net.from_transformer(net, transformer)

        def run(
            x: torch.Tensor,
            t: torch.Tensor,
            captions: torch.Tensor,
            lengths: torch.Tensor,
            contexts: Sequence[torch.Tensor],
            *,
            denoiser: Callable[..., Any],
            nets: Sequence[Any],
            scales: Sequence[float],
            **kwargs: Any,
        ) -> torch.Tensor:
            unpadded, latents = unpad_captions(captions, lengths), list(x.unbind(0))

            def prepare(used: Any) -> dict[str, Any]:
                samples: dict[int, torch.Tensor] = {}
                for each, context, scale in zip(nets, contexts, scales, strict=True):
                    # Some blocks are those of the transformer, which has LoRAs in one call and none in the next.
                    each.from_transformer(each, used)
                    for layer, sample in each(latents, t, unpadded, list(context), conditioning_scale=scale).items():
                        samples[layer] = samples[layer] + sample if layer in samples else sample
                return {"controlnet_block_samples": samples}

            more = {"prepare": prepare} if "adapters" in kwargs else prepare(transformer)
            return torch.stack(denoiser(latents, t, unpadded, **more, **kwargs, return_dict=False)[0])

        return Gate("denoise", run)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        active = self._active()
        if not active:
            return self._forward(*args, **kwargs)
        return self._controlled(active, *args, **kwargs)

    def _controlled(
        self,
        active: Sequence[int],
        x: list[torch.Tensor],
        t: torch.Tensor,
        cap_feats: list[torch.Tensor],
        *,
        return_dict: bool = False,  # noqa: ARG002  # always a tuple
        **kwargs: Any,
    ) -> Any:
        controls = [self._controls[index] for index in active]
        # With LoRAs, the forward is a gate with its argument `adapters`.
        gate, adapters = getattr(self._forward, "func", self._forward), getattr(self._forward, "keywords", {})
        # The gate of any of them: the ControlNets are arguments of the call.
        output = controls[0].run(
            torch.stack(x),
            t,
            *pad_captions(cap_feats),
            [self._inputs[index].repeat(len(x), 1, 1, 1, 1) for index in active],
            denoiser=gate.forward,
            nets=tuple(control.net for control in controls),
            scales=tuple(control.weight.scale for control in controls),
            **adapters,
            **kwargs,
        )
        return (list(output.unbind(0)),)

    def encode(self, control: ActiveControl, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG002
        pipeline, config = self._pipeline, self._pipeline.vae.config
        pixels = control.pixels.to(pipeline._execution_device, pipeline.dtype)
        encoded = retrieve_latents(pipeline.vae.encode(pixels), sample_mode="argmax")
        latents = (encoded - config.shift_factor) * config.scaling_factor
        latents = latents.unsqueeze(2)
        # Channels for inpainting are zero, as in the stock text-to-image pipeline.
        missing = control.net.config.control_in_dim - latents.shape[1]
        zeros = latents.new_zeros(latents.shape[0], missing, *latents.shape[2:])
        return torch.cat([latents, zeros], dim=1)


def _sum(outputs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Return the sums of the samples of several ControlNets, block by block."""
    total = list(outputs[0])
    for output in outputs[1:]:
        total = [before + new for before, new in zip(total, output, strict=False)]
    return total
