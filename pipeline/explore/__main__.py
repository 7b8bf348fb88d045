"""Try a model on a local page: search images by words, by an image or by a box; see where a phrase lies; score phrases.

With two models every answer stands side by side, as of stage 1 and stage 2. The page is for this machine (127.0.0.1)
unless --host says otherwise. Data are embedded first and kept, so the second start is quick; embeddings that
`python -m pipeline.embed` wrote are taken as they are (--embeddings, one folder a model).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
import webbrowser
from pathlib import Path

from pipeline.base.commands import command_parser, run_command

EXAMPLES = """examples:
  python -m pipeline.explore runs/demo/stage1 runs/demo/stage2 --data runs/demo/data/test
  python -m pipeline.explore my-model --data photos --port 8080
  python -m pipeline.explore my-model --embeddings embeddings/photos
  python -m pipeline.explore my-model      (no search: send an image, draw a box, type phrases)
"""
MOST_MODELS = 2


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    kept = "stopped; what is embedded is kept, and the same command goes on"
    return run_command(lambda: _serve(arguments), (ValueError, OSError), interrupted=kept)


def _serve(arguments: argparse.Namespace) -> int:
    import uvicorn  # the server and torch take seconds to import, and --help needs neither

    from pipeline.explore.app import Explorer, make_app

    explorer = Explorer(_models(arguments))
    address = f"http://{arguments.host}:{arguments.port}/"
    hosts = ["127.0.0.1", "localhost", arguments.host] if arguments.host != "0.0.0.0" else ["*"]
    print(f"explore: {address}  (Ctrl-C ends it)", flush=True)
    if arguments.open:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    server = uvicorn.Server(
        uvicorn.Config(make_app(explorer, hosts), host=arguments.host, port=arguments.port, log_level="warning")
    )
    try:
        server.run()
    except KeyboardInterrupt:
        return 0
    except SystemExit:
        return 2  # uvicorn said why on stderr: the port is taken
    return 0 if server.started else 2


def _models(arguments: argparse.Namespace) -> list:
    from pipeline.embed.embed import EmbedSettings, embed  # as in `_serve`
    from pipeline.embed.read import read_embeddings
    from pipeline.embed.sources import parts_of
    from pipeline.evaluation.models.load import load_model
    from pipeline.explore.answers import Explored

    if len(arguments.models) > MOST_MODELS:
        raise ValueError(f"{len(arguments.models)} models; the page shows one, or two side by side")
    if arguments.embeddings and len(arguments.embeddings) != len(arguments.models):
        raise ValueError(f"{len(arguments.embeddings)} --embeddings for {len(arguments.models)} models; give one each")
    explored = []
    for number, path in enumerate(arguments.models):
        model = load_model(path, device=arguments.device)
        data = None
        if arguments.embeddings:
            data = read_embeddings(arguments.embeddings[number])
        elif arguments.data:
            parts = parts_of(arguments.data, arguments.images_per_file, regions=False)
            names = "\n".join([model.fingerprint(), *(str(one.resolve()) for one in arguments.data)])
            folder = arguments.cache / hashlib.sha256(names.encode("utf-8")).hexdigest()[:16]
            print(f"{path}: embeddings in {folder}", flush=True)
            embed(model, parts, folder, EmbedSettings())
            data = read_embeddings(folder)
        width = model.encode_texts(["a"], "short").shape[1]
        if data is not None and data.vectors.shape[1] != width:
            raise ValueError(
                f"the embeddings have {data.vectors.shape[1]} numbers and {path} makes {width}; embed with this model"
            )
        explored.append(Explored(_name(path, number), model, data))
    return explored


def _name(path: str, number: int) -> str:
    return Path(path).resolve().name or f"model {number + 1}"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.explore", __doc__, EXAMPLES)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fine-grained-vlm" / "explore"
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="one or two: runs' folders or Hugging Face model folders")
    add("--data", nargs="+", type=Path, default=[], metavar="PATH", help="shards, folders of images, images")
    add("--embeddings", nargs="+", type=Path, default=[], metavar="FOLDER", help="of pipeline.embed, one a model")
    add("--cache", type=Path, default=cache, metavar="FOLDER", help=f"where embeddings are kept (default: {cache})")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=7860, help="default: 7860")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--images-per-file", type=int, default=1024, help="of the kept embeddings (default: 1024)")
    add("--open", action="store_true", help="open the page in a browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
