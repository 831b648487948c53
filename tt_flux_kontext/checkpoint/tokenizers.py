"""The tokenizers of a checkpoint, by transformers."""

from pathlib import Path

import torch
from loguru import logger
from transformers import CLIPTokenizer, T5TokenizerFast

from tt_flux_kontext.checkpoint.files import CheckpointError, check_fields, present, read_json

# What each can be made of, the first one by preference; and the other files that are read where they are there.
_CLIP_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_T5_FILES = (("tokenizer.json",), ("spiece.model",))
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json")


def load_clip_tokenizer(folder: Path, vocabulary: int, positions: int) -> CLIPTokenizer:
    """CLIP's tokenizer of a checkpoint.

    Args:
        vocabulary: rows of the text encoder's embedding table.
        positions: tokens that it takes.

    Raises `CheckpointError` when a file is missing or can't be read, or when the tokenizer doesn't fit the encoder.
    """
    config = _read_config(folder)
    if config.get("model_max_length", positions + 1) > positions:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: model_max_length is {config.get('model_max_length', 'missing')}, but "
            f"the text encoder takes {positions} tokens."
        )
    return _load(CLIPTokenizer, folder, _CLIP_FILES, vocabulary)


def load_t5_tokenizer(folder: Path, vocabulary: int) -> T5TokenizerFast:
    """T5's tokenizer of a checkpoint; as for CLIP's, but that T5 takes any number of tokens."""
    _read_config(folder)
    return _load(T5TokenizerFast, folder, _T5_FILES, vocabulary)


def token_ids(tokenizer, prompts: list[str], length: int, encoder: str, rest: str = "") -> torch.Tensor:
    """int64 [B, length], padded; what doesn't fit is cut off with a warning that names the encoder."""
    # without verbose=False transformers would warn of indexing errors, which there are none of after the cut
    for prompt, ids in dict(zip(prompts, tokenizer(prompts, verbose=False).input_ids, strict=True)).items():
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            read = f"{encoder} reads the first {length} of {len(ids)} tokens of the prompt '{prompt[:40]}...'"
            logger.warning(f"{read}, not '{lost}'. {rest}".rstrip())
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def _read_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    check_fields(path, config, {"model_max_length": float})
    return config


def _load(tokenizer_class, folder: Path, sources: tuple[tuple[str, ...], ...], vocabulary: int):
    for name in _OTHER_FILES:
        present(folder / name)  # refuses what would be read and can't be
    lacking = [[name for name in files if not present(folder / name)] for files in sources]
    if all(lacking):
        raise CheckpointError(f"{folder} lacks {' and '.join(lacking[-1])}; {lacking[0][0]} would do too.")
    if lacking[0] and "merges.txt" in sources[-1]:
        _check_merges(folder)
    try:
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
        letter = tokenizer("a", add_special_tokens=False).input_ids
    except Exception as error:  # transformers and tokenizers raise many kinds
        reason = " ".join(str(error).split())
        missing = f" {lacking[0][0]} is missing." if lacking[0] else ""
        raise CheckpointError(f"{folder} can't be read as a {tokenizer_class.__name__} ({reason}).{missing}") from error
    if not letter or tokenizer.unk_token_id in letter:
        raise CheckpointError(f"{folder} has a vocabulary without the letter 'a'. Fetch its files again.")
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{folder} has {len(tokenizer)} tokens, but the text encoder's vocab_size is {vocabulary}: "
            "they are not of one checkpoint."
        )
    return tokenizer


def _check_merges(folder: Path) -> None:
    """With a part of merges.txt all would seem well, but words would fall into letters."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    known = {line.replace(" ", "") for line in lines} | {"<|startoftext|>", "<|endoftext|>"}
    pieces = [piece for piece in read_json(folder / "vocab.json") if len(piece.removesuffix("</w>")) > 1]
    lost = [piece for piece in pieces if piece not in known]
    if lost:
        raise CheckpointError(
            f"{folder / 'merges.txt'} is not whole: no merge in it gives {len(lost)} of the pieces in vocab.json, "
            f"such as {lost[0]!r}. Fetch it again."
        )
