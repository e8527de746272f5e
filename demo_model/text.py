"""The tokenizer, trained on captions, and a small text encoder that is trained with the UNet."""

from __future__ import annotations

import json
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .dataset import sample
from .recipe import TEXT_LENGTH, TEXT_WIDTH, VOCABULARY

START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = 10_000


def new_tokenizer() -> CLIPTokenizer:
    """Train byte-pair encoding on sampled captions; other text is split into bytes, so no token is unknown."""
    blank = CLIPTokenizer()
    learner = Tokenizer(BPE(unk_token=END, end_of_word_suffix="</w>"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(alphabet),
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    rng = random.Random("captions for the vocabulary")
    learner.train_from_iterator((sample(seed).caption(rng) for seed in range(CAPTIONS)), trainer)
    return _with_every_byte(learner, alphabet)


def _with_every_byte(learner: Tokenizer, alphabet: list[str]) -> CLIPTokenizer:
    """Add each byte as the end of a word to the vocabulary."""
    learnt = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = learnt["vocab"]
    for byte in alphabet:
        vocab.setdefault(f"{byte}</w>", len(vocab))
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _start_as_bag_of_words(encoder, tokenizer)
    return encoder


@torch.no_grad()
def _start_as_bag_of_words(encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Initialise with large word embeddings, zero padding and no positions: padding then carries the mean of all words.

    With CLIP's initialisation (deviation 0.02) the UNet learnt only the style, the first word of captions.
    """
    words, positions = encoder.get_input_embeddings().weight, encoder.embeddings.position_embedding.weight
    words.normal_(std=1.0)
    words[tokenizer.eos_token_id] = 0.0
    positions.zero_()
