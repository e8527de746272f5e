"""Conditioning of the denoiser: ControlNets, LoRAs, IP-Adapters, prompt embeddings, concat UNets, upscalers."""
