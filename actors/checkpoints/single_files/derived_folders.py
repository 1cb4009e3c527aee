"""The folder that a checkpoint in a single file becomes: its files, and where it is kept."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import actors.checkpoints.single_files
from actors.checkpoints.component_files import DerivedFile, Files, derived_json
from actors.checkpoints.single_files.single_file import SingleFile
from actors.checkpoints.single_files.single_file_kinds import Recognised
from models.caches import cache_folder
from models.clip_tokenizer import write_tokenizer

_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def derived_files(single: SingleFile) -> Files:
    """The files that the checkpoint's folder will have, as far as a plan reads them. Nothing is converted."""
    recognised = single.recognised
    files = {name: derived_json(config) for name, config in recognised.configs.items()}
    for name, size_bytes in recognised.size_bytes.items():
        digest = hashlib.sha256(f"{single.content} {name}".encode()).hexdigest()
        files[f"{name}/{_WEIGHTS[name]}"] = DerivedFile(size_bytes=size_bytes, hash=digest)
    for name, pad_token in recognised.tokenizers.items():
        files[f"{name}/tokenizer_config.json"] = derived_json({"pad_token": pad_token})
    return files


def write_configuration(folder: Path, recognised: Recognised) -> None:
    """Write the configuration and the tokenizers that `from_single_file` needs to a new folder."""
    for name, config in recognised.configs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    for name, pad_token in recognised.tokenizers.items():
        write_tokenizer(folder / name, pad_token)


def kept_folder(content: str) -> Path:
    """The folder of this machine's cache for the checkpoint with this content.

    Another version of darkroom's derivation or of the libraries that convert it has another folder.
    """
    sources = Path(actors.checkpoints.single_files.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(sources.glob("*.py")))
    versions = [f"{name}={version(name)}" for name in ("diffusers", "transformers")]
    digest = hashlib.sha256(code + "\n".join(versions).encode()).hexdigest()[:12]
    return cache_folder() / f"single-file-{content[:32]}-{digest}"
