"""The commands, each loaded when it is called, and the exit codes.

Exit 0 done, 1 work failed, 2 the input is wrong, 130 interrupted.
"""

import functools
import io
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cyclopts import (
    App,
    CycloptsError,
    Group,
    Parameter,
    UnusedCliTokensError,
    default_name_transform,
)
from cyclopts.field_info import FieldInfo

from laionkit import __version__
from laionkit.cli.help_page import HelpPage, shown_default
from laionkit.core.errors import LaionkitError, is_disk_full

# Flags whose names are Python keywords or letters: field → flag, field → short flag.
_LONG = {"as_name": "as", "links_schema": "schema", "import_file": "import"}
_SHORT = {"k": "-k", "output": "-o", "set_": "-s"}


def _flag_name(field: str) -> str:
    return _LONG.get(field, default_name_transform(field))


def _short_flag(field: FieldInfo, taken: frozenset[str]) -> str | None:
    return _SHORT.get(field.name)


app = App(
    name="laionkit",
    version=__version__,
    help="Image links in; training sets you can search and trust out.",
    help_epilogue=(
        "laionkit demo shows the whole way, offline, in about two minutes; laionkit COMMAND --help "
        "explains a command. Exit codes: 0 done, 1 work failed, 2 the input is wrong, "
        "130 interrupted."
    ),
    help_format="plaintext",  # markup would eat what stands in [brackets]
    help_formatter=HelpPage(),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
    default_parameter=Parameter(
        name_transform=_flag_name,
        short_alias=_short_flag,
        negative_iterable="",
        show_default=shown_default,
    ),
)
_stages = Group("Stages, in flow order", sort_key=1)
_looks = Group("Whole runs and looking around", sort_key=2)
_options = Group("Options", sort_key=3)

# name, group, help; the function of the same name lives in laionkit.cli.commands, or _HOMES.
_COMMANDS = (
    ("metadata", _stages, "Read link tables or a folder of pictures into a clean work list."),
    ("fetch", _stages, "Download, check and resize the images into webdataset shards."),
    ("adopt", _stages, "Register existing shards or embeddings, in place and read-only."),
    ("embed", _stages, "Compute CLIP vectors of images and captions, and scores on the way."),
    ("score", _stages, "Add score columns from stored vectors alone."),
    ("index", _stages, "Build the search index."),
    ("query", _stages, "Find images by text, image or vector, filtered by SQL."),
    ("subset", _stages, "Write a filtered training subset, with a reason for every drop."),
    ("run", _looks, "Run a recipe: stages and their settings in a YAML file."),
    ("status", _looks, "What is done, what was lost and why."),
    ("columns", _looks, "Every column that --where can name: type, origin, nulls, range."),
    ("forget", _looks, "Take samples down: no search, filter or subset has them any more."),
    ("verify", _looks, "Check a subset's files and samples against its manifest."),
    ("push", _looks, "Upload a subset to the Hugging Face hub."),
    ("demo", _looks, "Draw, serve, fetch, embed, score, index, filter and query 1,500 pictures."),
)
_HOMES = {
    "metadata": "metadata_command",
    "fetch": "fetch_command",
    "index": "search_commands",
    "query": "search_commands",
    "status": "look_commands",
    "columns": "look_commands",
    "subset": "subset_commands",
    "verify": "subset_commands",
    "push": "subset_commands",
}
_USAGES = {  # where cyclopts cannot tell the arguments' names or order
    "metadata": "SOURCE… DATASET",
    "query": "DATASET [TEXT]",
    "run": "RECIPE DATASET [SOURCE…]",
    "demo": "[DATASET]",
}
_EXAMPLES = {
    "metadata": (
        "laionkit metadata links.parquet my-set",
        "laionkit metadata hf://datasets/laion/laion2B-en-aesthetic my-set",
        'laionkit metadata links.parquet my-set --where "punsafe < 0.1" --dedup url',
        "laionkit metadata --inspect links.parquet",
        "laionkit metadata ~/Pictures album",
    ),
    "fetch": (
        "laionkit fetch my-set --dry-run",
        "laionkit fetch my-set --image-size 384",
        "laionkit fetch my-set --part 1/4  # on the first of four machines",
    ),
    "adopt": (
        "laionkit adopt ../laion400m-shards my-set",
        "laionkit adopt ../clip-retrieval-run/embeddings my-set --model ViT-B-32-quickgelu/openai",
    ),
    "embed": (
        "laionkit embed my-set --model ViT-L-14-quickgelu/openai --heads aesthetic-v2,nsfw-l14",
        "laionkit embed my-set --model ViT-B-32/my-weights.pt --backbone-id me/my-clip",
    ),
    "score": (
        "laionkit score my-set --heads aesthetic-v1,aesthetic-v2",
        'laionkit score my-set --heads \'marked=prompt:"a watermarked photo" vs "a clean photo"\'',
        "laionkit score my-set --labels animals.txt",
        "laionkit score my-set --import ratings.csv --on hash --value rating",
    ),
    "index": (
        "laionkit index my-set --explain       # what would be built, and why",
        "laionkit index my-set --evaluate 500  # how often the nearest are found, by filter",
    ),
    "query": (
        'laionkit query my-set "a red fox in snow" --where "width >= 512" -k 20',
        'laionkit query my-set "a fox" --minus "0.5:cartoon" --boost aesthetic_v2=0.3',
        "laionkit query my-set --image fox.jpg --sheet hits.png",
        'laionkit query my-set "at night" --plus 0.5:image=https://example.org/fox.jpg',
        "laionkit query my-set --queries texts.txt -o hits.parquet",
    ),
    "subset": (
        'laionkit subset my-set --name best --where "aesthetic_v2 >= 6 AND punsafe < 0.1"',
        "laionkit subset my-set --name sd --preset sd-v2 --as parquet",
        "laionkit subset my-set --name sd --preset sd-v2 --dry-run",
    ),
    "run": ("laionkit run laion-aesthetics my-set links.parquet -s fetch.image_size=384",),
    "status": ("laionkit status my-set", "laionkit status my-set --json | jq '.[].counts'"),
    "columns": ("laionkit columns my-set",),
    "push": ("laionkit push my-set best me/best-pictures",),
    "forget": (
        "laionkit forget my-set --keys takedowns.txt --yes",
        "laionkit forget my-set --where \"url LIKE 'https://example.org/%'\" --yes",
    ),
    "verify": ("laionkit verify my-set best",),
    "demo": ("laionkit demo", "laionkit demo /tmp/small --pictures 200"),
}


def _examples(*lines: str) -> str:
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


for _place, (_name, _group, _help) in enumerate(_COMMANDS):
    _home = f"laionkit.cli.{_HOMES.get(_name, 'commands')}:{_name}"
    app.command(
        _home,
        name=_name,
        group=_group,
        help=_help,
        help_epilogue=_examples(*_EXAMPLES[_name]),
        usage=f"Usage: laionkit {_name} [OPTIONS] {_USAGES[_name]}" if _name in _USAGES else None,
        sort_key=_place,
    )
_head = App(name="head", help="Fit a scoring head on your own ratings.", group=_stages, sort_key=4)
_head.command(
    "laionkit.cli.commands:head_fit",
    name="fit",
    help="Fit a linear head on RATINGS (a table with key, url or hash, and rating) of DATASET.",
    help_epilogue=_examples(
        "laionkit head fit ratings.csv my-set -o heads/my-taste.safetensors",
        "laionkit score my-set --heads heads/my-taste.safetensors",
    ),
)
app.command(_head)
for _flag in ("--help", "--version"):
    app[_flag].group = _options


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. A user's mistake is one line on stderr, never a traceback."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    interrupted = f"interrupted; finished shards are kept. Resume: {program()} {shlex.join(tokens)}"
    _on_signals(functools.partial(_interrupt, interrupted))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no arrow or caption is worth a traceback
    try:
        app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(_one_line(error), 2)
    except LaionkitError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has enough (laionkit query … | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _fail(_system_error(error), 1)
    except KeyboardInterrupt:
        _fail(interrupted, 130)
    sys.exit(0)


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(message: str, signum: int, frame: FrameType | None) -> None:
    """The first signal unwinds. The next leaves at once: what is finished is on disk."""
    _on_signals(functools.partial(_leave, message))
    raise KeyboardInterrupt


def _leave(message: str, signum: int, frame: FrameType | None) -> None:
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # progress bars hide the cursor
    os.write(2, f"{shown}laionkit: {message}\n".encode())
    os._exit(130)


def _system_error(error: OSError) -> str:
    if is_disk_full(error):
        return "no space left on the disk. What is finished is safe: make room and run again"
    return f"{error.strerror or error}: {error.filename or 'a file'}"


def _one_line(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"{shlex.join(error.unused_tokens or ())}: more than this command takes"
    return " ".join(str(error).split())


def program() -> str:
    """How this command is called: its name where a shell finds it, else its path."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return "python -m laionkit"
    return "laionkit" if shutil.which("laionkit") else called


def _fail(message: str, code: int) -> NoReturn:
    if progress := sys.modules.get("laionkit.cli.progress"):  # else nothing is drawn
        progress.stop()
    print(f"laionkit: {message}", file=sys.stderr)
    sys.exit(code)
