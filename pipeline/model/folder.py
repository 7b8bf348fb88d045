"""What the files of a model's folder say, checked before any work is done with it: JSON, numbers, shapes of weights.

Imports nothing of the project: an exported folder carries this file. Configurations keep the fields that are known here
and nothing else, so that no other value of a stranger's file reaches transformers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.activations import ACT2FN

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
OPEN_CLIP = "open_clip"  # the model type of a folder that has the latter alone
MAX_JSON_BYTES = 8 << 20  # assumption: ten times the largest index of a public model
MAX_HEADER_BYTES = 16 << 20  # of a safetensors file: a hundred thousand tensors
WHOLE_NUMBERS = {  # field -> least, most; far beyond every published model
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 18),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "max_position_embeddings": (1, 1 << 16),
    "projection_size": (1, 1 << 16),
    "projection_dim": (1, 1 << 16),
    "keep_len": (1, 1 << 16),
    "longtext_len": (1, 1 << 18),
    "num_channels": (1, 64),
    "patch_size": (1, 1024),
    "image_size": (1, 1 << 14),
    "num_patches": (1, 1 << 20),
    "temporal_layers": (0, 64),
    "temporal_frames": (0, 512),
}
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


class StartError(ValueError):
    """A checkpoint cannot be what the model starts from; the message lists names and shapes."""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object of a small file.

    Raises:
        StartError: it is too long, not JSON in UTF-8, or not an object.
    """
    if file.stat().st_size > MAX_JSON_BYTES:
        raise StartError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        content = json.loads(file.read_bytes().decode("utf-8"))
    except RecursionError as error:
        raise StartError(f"{file} is nested too deep; download it again") from error
    except ValueError as error:  # json's and UTF-8's errors, and numbers of too many digits
        raise StartError(f"{file} is not JSON in UTF-8 ({shown(error)}); download it again") from error
    if not isinstance(content, dict):
        raise StartError(f"{file} holds {shown(repr(content))}; it must be a JSON object")
    return content


def checked_tower(values: object, known: Collection[str], where: str) -> dict[str, Any]:
    """The fields of one tower's configuration that are ``known``, each within its range.

    Raises:
        StartError: with field, value and rule.
    """
    if not isinstance(values, dict):
        raise StartError(f"{where} is {shown(repr(values))}; it must be an object with a tower's numbers")
    kept = {name: value for name, value in values.items() if name in known}
    for name, value in kept.items():
        rule = _broken_rule(name, value)
        if rule:
            raise StartError(f"{where}.{name} is {shown(repr(value))}; {rule}")
    heads, width = kept.get("num_attention_heads"), kept.get("hidden_size")
    if heads and width and width % heads:
        raise StartError(f"{where}.hidden_size is {width}; it must be a multiple of num_attention_heads, {heads}")
    return kept


def checked_temporal(values: dict[str, Any], file: str) -> dict[str, int]:
    """What a configuration says of the temporal weights, {} where there are none. Raises as ``checked_tower``."""
    found = checked_tower(values, ("temporal_layers", "temporal_frames"), file)
    if bool(found.get("temporal_layers")) != bool(found.get("temporal_frames")):
        raise StartError(f"{file}: temporal_layers and temporal_frames are {found}; both must be 0 or both above")
    return found


def _broken_rule(name: str, value: object) -> str | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if name in WHOLE_NUMBERS:
        least, most = WHOLE_NUMBERS[name]
        fits = is_whole and least <= value <= most  # type: ignore[operator]  # whole, so it compares
        return None if fits else f"it must be a whole number from {least} to {most}"
    if name in TOKEN_IDS:
        ids = value if isinstance(value, list) and name == "eos_token_id" and value else [value]
        fits = value is None or all(isinstance(one, int) and 0 <= one <= 1 << 24 for one in ids)
        return None if fits else "it must be the number of a token, or null"
    if name == "hidden_act":
        return None if isinstance(value, str) and value in ACT2FN else "it must be an activation of transformers"
    if name in ("layer_norm_eps", "attention_dropout"):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        return None if fits else "it must be a number from 0 to below 1"
    return None if isinstance(value, bool) else "it must be true or false"


def is_open_clip(folder: Path) -> bool:
    """Whether a folder is open_clip's alone; many hold a model for both, and transformers' files are read then."""
    return not (folder / CONFIG).is_file() and (folder / OPEN_CLIP_CONFIG).is_file()


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; of one of open_clip its own file, with a ``model_type`` that it does not have.

    Raises:
        StartError: as :func:`read_object`.
    """
    if is_open_clip(folder):
        return read_object(folder / OPEN_CLIP_CONFIG) | {"model_type": OPEN_CLIP}
    return read_object(folder / CONFIG)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: those its index names, else every safetensors, else .bin files.

    Where open_clip's files lie beside those of transformers, the folder's configuration says which are meant.

    Raises:
        StartError: an index that is none, or that names files of other folders.
    """
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if index.is_file():
            places = read_object(index).get("weight_map")
            names = set(map(str, places.values())) if isinstance(places, dict) else set()
            if not names or any(Path(name).name != name or not name.isprintable() for name in names):
                raise StartError(f"{index} has no weight_map of file names beside it; download it again")
            return [folder / name for name in sorted(names)]
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*pytorch_model*.bin"))
    wanted = is_open_clip(folder)
    return [file for file in found if file.name.startswith(OPEN_CLIP) == wanted] or found


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]] | None:
    """The shape of every tensor, from the headers alone; None where a file is no safetensors and has none.

    Raises:
        StartError: a file that is not there, or whose header does not fit its bytes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not file.is_file():
            raise StartError(f"{shown(file)} is named in the folder's index but is not there; download it as well")
        if file.suffix != ".safetensors":
            _check_archive(file)
            return None
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        if size < 8 or header > min(size - 8, MAX_HEADER_BYTES):
            raise StartError(
                f"{file} has {size} bytes and a header of {header}; it is cut or damaged, download it again"
            )
        try:
            with safe_open(file, framework="pt") as opened:
                shapes.update({name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()})
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise StartError(f"{file} is damaged ({shown(error)}); download it again") from error
    return shapes


def _check_archive(file: Path) -> None:
    """A .bin file is a zip of plain bytes; packed ones could grow without end."""
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise StartError(f"{file} is no file of weights that torch.save wrote ({shown(error)})") from error
    if packed:
        raise StartError(f"{file} holds packed entries, as torch.save writes none; convert it to safetensors")


def check_depth(towers: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]] | None, folder: Path) -> None:
    """Raise StartError where the towers have more layers than there are tensors: nothing is built for such a claim."""
    layers = sum(towers.values())
    if shapes and layers > len(shapes):
        raise StartError(
            f"{folder}/config.json asks for {layers} layers ({', '.join(f'{k} {v}' for k, v in towers.items())}), "
            f"and its weights are {len(shapes)} tensors; they are of another model"
        )


def shown(text: object, limit: int = 160) -> str:
    """Text of a file for a message: one line, cut, without characters that steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text)[:limit].split()))
