"""Everything that conditions the denoiser: ControlNets, LoRAs, IP-Adapters, prompts, upscalers."""
