"""The two tokenizers of FLUX, trained on a small text and written file by file as on the Hugging Face hub.

`tokenizer`: CLIP's lower-casing byte-level BPE. `tokenizer_2`: T5's SentencePiece Unigram with 100 sentinels.
Every special token has the id rank that the models rely on: CLIP's `<|endoftext|>` is the highest id, because a
text encoder whose config says `eos_token_id: 2` pools at the argmax of the ids; T5 has `<pad>` 0, `</s>` 1, `<unk>` 2.
"""

import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5TokenizerFast
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

CLIP_LENGTH, T5_LENGTH = 77, 512
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_PAD, _END, _UNK = "<pad>", "</s>", "<unk>"
_SENTINELS = [f"<extra_id_{i}>" for i in range(100)]


def write_clip_tokenizer(folder: Path, corpus: Iterable[str], merges: int = 300) -> int:
    """Trains CLIP's tokenizer, writes vocab.json, merges.txt and its configs; returns the vocabulary's size."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    units = alphabet + [f"{unit}</w>" for unit in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=len(units) + merges, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator((sentence.lower() for sentence in corpus), trainer)
    pairs = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    pieces = dict.fromkeys(units + ["".join(pair) for pair in pairs] + [_BOS, _EOS])

    folder.mkdir()
    _write_json(folder / "vocab.json", {piece: i for i, piece in enumerate(pieces)})
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in pairs]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": _EOS}
    _write_json(folder / "special_tokens_map.json", special)
    config = {"add_prefix_space": False, "clean_up_tokenization_spaces": True, "do_lower_case": True}
    config |= {"errors": "replace", "model_max_length": CLIP_LENGTH, "tokenizer_class": "CLIPTokenizer"} | special
    _write_json(folder / "tokenizer_config.json", config)
    return len(pieces)


def write_t5_tokenizer(folder: Path, corpus: Iterable[str], pieces: int = 400) -> int:
    """Trains T5's tokenizer, writes spiece.model, tokenizer.json and its configs; returns the vocabulary's size."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces,
        special_tokens=[_PAD, _END, _UNK],
        unk_token=_UNK,
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer)
    vocabulary = _complete(json.loads(trained.to_str())["model"]["vocab"])

    folder.mkdir()
    (folder / "spiece.model").write_bytes(_sentencepiece_model(vocabulary))
    vocabulary += [(sentinel, 0.0) for sentinel in reversed(_SENTINELS)]
    T5TokenizerFast(vocab=vocabulary).backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": _END, "unk_token": _UNK, "pad_token": _PAD}
    _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": _SENTINELS} | special)
    config = {"additional_special_tokens": _SENTINELS, "extra_ids": len(_SENTINELS)}
    config |= {"clean_up_tokenization_spaces": True, "model_max_length": T5_LENGTH}
    config |= {"tokenizer_class": "T5Tokenizer"} | special
    _write_json(folder / "tokenizer_config.json", config)
    return len(vocabulary)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5TokenizerFast]:
    """CLIP's and T5's tokenizer of a checkpoint folder."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), T5TokenizerFast.from_pretrained(folder / "tokenizer_2")


def _complete(vocabulary: list) -> list[tuple[str, float]]:
    """A trained vocabulary without what varies between runs of the trainer, and with all printable characters.

    The last bits of the scores vary, and so does the order in which it ranks characters that never stand alone: those
    get one score here, as do the characters that it has never seen.
    """
    special = [(piece, score) for piece, score in vocabulary[:3]]
    floor = min(score for piece, score in vocabulary[3:] if len(piece) > 1)
    ranked = {piece for piece, score in vocabulary[3:] if len(piece) == 1 and score < floor + 0.01}
    learnt = [(piece, round(score, 6)) for piece, score in vocabulary[3:] if piece not in ranked]
    learnt.sort(key=lambda item: (-item[1], item[0]))
    others = (ranked | set(string.printable) - set(string.whitespace)) - {piece for piece, _ in learnt}
    return special + learnt + [(character, round(floor - 1, 6)) for character in sorted(others)]


def _sentencepiece_model(vocabulary: list[tuple[str, float]]) -> bytes:
    """The vocabulary as a SentencePiece Unigram model."""
    kinds = sentencepiece.ModelProto.SentencePiece
    types = {_PAD: kinds.CONTROL, _END: kinds.CONTROL, _UNK: kinds.UNKNOWN}
    model = sentencepiece.ModelProto()
    for piece, score in vocabulary:
        model.pieces.add(piece=piece, score=score, type=types.get(piece, kinds.NORMAL))
    model.trainer_spec.model_type = sentencepiece.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(vocabulary)
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.unk_id, model.trainer_spec.bos_id = 2, -1
    model.normalizer_spec.name = "identity"
    return model.SerializeToString()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
